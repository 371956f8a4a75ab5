// Package imagearchive reads archives of images from files of this machine, for `gantry image import`.
//
// Open one and Send it; each archive is read once.
package imagearchive

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/archive"
	"github.com/gantryd/gantry/fault"
)

// importStream takes the chunks.
type importStream = connect.ClientStreamForClient[gantryv1.ImportChunk, gantryv1.ImportResponse]

// Send sends an archive and returns the images that were in it. Only the first chunk names the reference.
func Send(stream *importStream, from io.Reader, reference string) ([]*gantryv1.Image, error) {
	buf := make([]byte, 512<<10)
	chunk := &gantryv1.ImportChunk{Reference: reference}
	for {
		n, err := io.ReadFull(from, buf)
		chunk.Data = append([]byte(nil), buf[:n]...)
		if serr := stream.Send(chunk); serr != nil {
			break // The answer says why.
		}
		chunk = &gantryv1.ImportChunk{}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return nil, fault.Wrap(fault.Corrupt, err, "the archive cannot be read")
		}
	}
	got, err := stream.CloseAndReceive()
	if err != nil {
		return nil, err
	}
	return got.Msg.GetImages(), nil
}

// Open opens a file, or a directory that is an OCI layout as the tar stream of it.
func Open(path string) (io.ReadCloser, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, err, "the archive cannot be read")
	}
	if info.IsDir() {
		if _, err := os.Stat(filepath.Join(path, "oci-layout")); err != nil {
			return nil, fault.New(fault.Invalid, "directory %s is not an OCI layout", path).WithHint("it needs a file oci-layout")
		}
		return packed(path), nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fault.Wrap(fault.Denied, err, "the archive cannot be read")
	}
	return f, nil
}

// packed gives a directory's content as a tar stream.
func packed(dir string) io.ReadCloser {
	r, w := io.Pipe()
	go func() { w.CloseWithError(archive.Pack(w, dir, ".", true, false)) }()
	return r
}
