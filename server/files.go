package server

import (
	"context"
	"strings"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
)

// files serves SecretService or ConfigService: what they have in common, which is all but the form in which a content is
// stored.
type files[T store.Object] struct {
	s    *Server
	kind string // "secret"
	used func(*gantryv1.ContainerSpec) []string
	make func(key string, content []byte) (T, error)
	// version is where the object has its version, size what may be told of its length.
	version func(T) *int64
	size    func(T) int64
}

func secretKeys(c *gantryv1.ContainerSpec) []string { return fileKeys(c.GetSecrets()) }
func configKeys(c *gantryv1.ContainerSpec) []string { return fileKeys(c.GetConfigs()) }

func (s *Server) secrets() *files[*gantryv1.Secret] {
	return &files[*gantryv1.Secret]{
		s: s, kind: "secret", used: secretKeys,
		make: func(key string, content []byte) (*gantryv1.Secret, error) {
			sealed, err := s.o.Sealer.Seal(key, content)
			return &gantryv1.Secret{Meta: store.NewMeta(key), Sealed: sealed, Fingerprint: s.o.Sealer.Fingerprint(key, content)}, err
		},
		version: func(o *gantryv1.Secret) *int64 { return &o.Version },
		size:    func(*gantryv1.Secret) int64 { return -1 },
	}
}

func (s *Server) configs() *files[*gantryv1.Config] {
	return &files[*gantryv1.Config]{
		s: s, kind: "config", used: configKeys,
		make: func(key string, content []byte) (*gantryv1.Config, error) {
			return &gantryv1.Config{Meta: store.NewMeta(key), Content: content}, nil
		},
		version: func(o *gantryv1.Config) *int64 { return &o.Version },
		size:    func(o *gantryv1.Config) int64 { return int64(len(o.Content)) },
	}
}

// List implements the API. Contents are never told.
func (h *files[T]) List(_ context.Context, req *connect.Request[gantryv1.ListFilesRequest]) (*connect.Response[gantryv1.ListFilesResponse], error) {
	snap := h.s.store.Snapshot()
	used := users(snap, h.used)
	out := &gantryv1.ListFilesResponse{}
	for _, o := range store.List[T](snap, inEnvironment(req.Msg.Environment)) {
		meta := o.GetMeta()
		out.Files = append(out.Files, &gantryv1.FileInfo{Meta: meta, Version: *h.version(o), Size: h.size(o), UsedBy: used[meta.Key]})
	}
	return connect.NewResponse(out), nil
}

// Create implements the API.
func (h *files[T]) Create(ctx context.Context, req *connect.Request[gantryv1.CreateFileRequest]) (*connect.Response[gantryv1.FileInfo], error) {
	m := req.Msg
	if err := validName("environment", m.Environment); err != nil {
		return nil, err
	}
	if err := validKey(h.kind, m.Name); err != nil {
		return nil, err
	}
	if len(m.Content) > maxFile {
		return nil, fault.New(fault.Invalid, "the %s %q has %d bytes, more than %d", h.kind, m.Name, len(m.Content), maxFile)
	}
	o, err := h.make(m.Environment+"/"+m.Name, m.Content)
	if err != nil {
		return nil, err
	}
	meta := o.GetMeta()
	meta.Labels = m.Labels
	err = h.s.store.Update(ctx, func(tx *store.Tx) error {
		*h.version(o) = 1
		if old, ok := store.Get[T](tx, meta.Key); ok {
			if !m.Replace {
				return fault.New(fault.Exists, "the %s %q exists", h.kind, m.Name).
					WithHint("gantry %s create --replace %s FILE makes a new version", h.kind, m.Name)
			}
			*h.version(o) = *h.version(old) + 1
		}
		store.Put(tx, o)
		return nil
	})
	return respond(&gantryv1.FileInfo{Meta: meta, Version: *h.version(o), Size: int64(len(m.Content))}, err)
}

// Remove implements the API.
func (h *files[T]) Remove(ctx context.Context, req *connect.Request[gantryv1.FileTarget]) (*connect.Response[gantryv1.RemoveFileResponse], error) {
	key := req.Msg.Environment + "/" + req.Msg.Name
	err := h.s.store.Update(ctx, func(tx *store.Tx) error {
		if _, ok := store.Get[T](tx, key); !ok {
			return fault.New(fault.NotFound, "there is no %s %q", h.kind, req.Msg.Name).WithHint("gantry %s ls", h.kind)
		}
		if used := users(tx, h.used)[key]; len(used) > 0 {
			return fault.New(fault.Conflict, "the %s %q is used by %s", h.kind, req.Msg.Name, strings.Join(used, ", "))
		}
		store.Delete[T](tx, key)
		return nil
	})
	return respond(&gantryv1.RemoveFileResponse{}, err)
}
