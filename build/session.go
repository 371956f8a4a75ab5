package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net"
	"strings"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/session/sshforward"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// openSession makes what the solver asks back: files, secrets, SSH agents, credentials. It never leaves the process.
func (b *Builder) openSession(ctx context.Context, req Request, src sources) (*session.Session, error) {
	dirs, err := src.mounts()
	if err != nil {
		return nil, err
	}
	s, err := session.NewSession(ctx, sharedKey(req.Start.GetSpec()))
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "open a build session")
	}
	s.Allow(filesync.NewFSSyncProvider(dirs))
	s.Allow(secretsprovider.FromMap(req.Start.GetSecrets()))
	s.Allow(credentials(req.Start.GetAuths()))
	if len(req.SSH) > 0 {
		s.Allow(agents(req.SSH))
	}
	return s, nil
}

// sharedKey names the copy of the context that BuildKit keeps, so that the next build of the same place sends changed
// files only.
func sharedKey(spec *gantryv1.BuildSpec) string {
	sum := sha256.Sum256([]byte(spec.GetContext() + "\x00" + spec.GetDockerfile()))
	return hex.EncodeToString(sum[:])
}

// runSession serves s until ctx ends.
func (b *Builder) runSession(ctx context.Context, s *session.Session) error {
	group, ctx := errgroup.WithContext(ctx)
	return errIgnoringEnd(ctx, s.Run(ctx, func(_ context.Context, _ string, meta map[string][]string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		group.Go(func() error { return b.sessions.HandleConn(ctx, theirs, meta) })
		return ours, nil
	}))
}

func errIgnoringEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// credentials answers for the registries that a request carries credentials for.
type credentials []*gantryv1.RegistryAuth

// Register makes the answers callable.
func (c credentials) Register(server *grpc.Server) { auth.RegisterAuthServer(server, authServer{c: c}) }

type authServer struct {
	auth.UnimplementedAuthServer
	c credentials
}

// Credentials returns the credentials for a host, empty if there are none.
func (a authServer) Credentials(_ context.Context, req *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	host := registryHost(req.Host)
	for _, c := range a.c {
		if registryHost(c.GetServer()) != host {
			continue
		}
		if token := c.GetIdentityToken(); token != "" {
			return &auth.CredentialsResponse{Secret: token}, nil
		}
		return &auth.CredentialsResponse{Username: c.GetUsername(), Secret: c.GetPassword()}, nil
	}
	return &auth.CredentialsResponse{}, nil
}

// registryHost brings the names of one registry to one form; Docker Hub has four.
func registryHost(server string) string {
	server = strings.TrimPrefix(strings.TrimPrefix(server, "https://"), "http://")
	server, _, _ = strings.Cut(server, "/")
	switch server {
	case "docker.io", "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return server
}

// Dial opens a connection to an SSH agent.
type Dial func(ctx context.Context) (io.ReadWriteCloser, error)

// agents forwards connections of RUN --mount=type=ssh by ID.
type agents map[string]Dial

// Register makes the agents reachable.
func (a agents) Register(server *grpc.Server) { sshforward.RegisterSSHServer(server, sshServer{a: a}) }

type sshServer struct {
	sshforward.UnimplementedSSHServer
	a agents
}

// CheckAgent reports whether an ID is known.
func (s sshServer) CheckAgent(_ context.Context, req *sshforward.CheckAgentRequest) (*sshforward.CheckAgentResponse, error) {
	if _, err := s.find(req.ID); err != nil {
		return nil, err
	}
	return &sshforward.CheckAgentResponse{}, nil
}

func (s sshServer) find(id string) (Dial, error) {
	if dial, ok := s.a[or(id, sshforward.DefaultID)]; ok {
		return dial, nil
	}
	return nil, status.Errorf(codes.NotFound, "ssh agent %q was not forwarded", or(id, sshforward.DefaultID))
}

// ForwardAgent joins a step's connection with the client's agent.
func (s sshServer) ForwardAgent(stream sshforward.SSH_ForwardAgentServer) error {
	var id string
	if md, ok := metadata.FromIncomingContext(stream.Context()); ok && len(md[sshforward.KeySSHID]) > 0 {
		id = md[sshforward.KeySSHID][0]
	}
	dial, err := s.find(id)
	if err != nil {
		return err
	}
	conn, err := dial(stream.Context())
	if err != nil {
		return status.Errorf(codes.Unavailable, "connect to the ssh agent: %v", err)
	}
	return join(stream, conn)
}

// join copies both ways until the agent has nothing more to say. The step may hang up earlier; it is told when the agent
// does, which BuildKit's own copy leaves out.
func join(stream sshforward.SSH_ForwardAgentServer, conn io.ReadWriteCloser) error {
	var asking errgroup.Group
	asking.Go(func() error { return questions(stream, conn) })
	defer conn.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			if err := stream.Send(&sshforward.BytesMessage{Data: buf[:n]}); err != nil {
				return err
			}
		}
		if err != nil {
			// Returning ends the stream, and with it the other direction.
			return nil
		}
	}
}

// questions writes what the step sends to the agent.
func questions(stream sshforward.SSH_ForwardAgentServer, conn io.ReadWriteCloser) error {
	for {
		message, err := stream.Recv()
		if err != nil {
			if half, ok := conn.(interface{ CloseWrite() error }); ok && err == io.EOF {
				return half.CloseWrite()
			}
			return conn.Close()
		}
		if _, err := conn.Write(message.Data); err != nil {
			return conn.Close()
		}
	}
}
