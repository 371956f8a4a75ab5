// Package sockettest serves made-up daemons to tests of the command line, on a Unix socket of their own.
package sockettest

import (
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
)

// Serve answers HTTP/2 without TLS until stop is called. host is a value for GANTRY_HOST.
func Serve(handler http.Handler) (host string, stop func(), err error) {
	// The path of a socket must be short, shorter than a test's own directory.
	dir, err := os.MkdirTemp("", "gantry-")
	if err != nil {
		return "", nil, err
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{Handler: handler, Protocols: protocols}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	return "unix://" + l.Addr().String(), func() { _ = s.Close(); <-done; _ = os.RemoveAll(dir) }, nil
}
