// Package gantry is the root of Gantry, which turns Linux machines into a platform for services.
//
// It holds no code. The command line starts in cmd/gantry, the daemon in cmd/gantryd; doc/architecture.md says which
// folder does what, and the test beside this file holds the folders to it.
package gantry
