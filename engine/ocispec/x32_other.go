//go:build !amd64

package ocispec

func hasX32() bool { return false }
