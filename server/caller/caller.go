// Package caller says who makes a request: the user at the other end of a Unix socket, or the one that another server of the
// cluster vouches for.
//
// FromConn is the ConnContext of the server on the Unix socket; Forward puts the caller into a request to the leader, and
// Forwarded reads it there, for requests of other servers only. Of is for handlers. Everything is safe in parallel. The
// package decides nothing about rights.
package caller

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"os/user"
	"strconv"

	"golang.org/x/sys/unix"
)

// Caller is who makes a request.
type Caller struct {
	// User is the name of a user, or "uid 1234" if the number has no name; empty if nobody knows.
	User string
	// Node is the ID of the machine whose server was asked first; empty for the one that answers.
	Node string
}

type key struct{}

// With notes the caller of what is done under ctx.
func With(ctx context.Context, c Caller) context.Context { return context.WithValue(ctx, key{}, c) }

// Of is the caller that With noted.
func Of(ctx context.Context) Caller {
	c, _ := ctx.Value(key{}).(Caller)
	return c
}

// FromConn notes the user of a connection over a Unix socket, as the kernel knows it. Other connections change nothing.
func FromConn(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) { cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil || failed != nil {
		return ctx
	}
	return With(ctx, Caller{User: userName(cred.Uid)})
}

func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return "uid " + id
}

// Headers of a request that one server passes on to another.
const (
	userHeader = "Gantry-User"
	nodeHeader = "Gantry-User-Node"
)

// Forward puts the caller of ctx into the headers of a request to another server; node is the machine that passes it on.
func Forward(ctx context.Context, h http.Header, node string) {
	c := Of(ctx)
	if c.Node == "" {
		c.Node = node
	}
	h.Set(userHeader, url.PathEscape(c.User))
	h.Set(nodeHeader, c.Node)
}

// Forwarded serves requests of other servers under the caller that they name. What comes from elsewhere must not get here: it
// could name anybody.
func Forwarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		c := Caller{Node: r.Header.Get(nodeHeader)}
		if name, err := url.PathUnescape(r.Header.Get(userHeader)); err == nil {
			c.User = name
		}
		next.ServeHTTP(rw, r.WithContext(With(r.Context(), c)))
	})
}
