package server

import (
	"context"
	"log/slog"
	"path"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
	"github.com/gantryd/gantry/server/caller"
	"github.com/gantryd/gantry/store"
)

// audit writes a line for every call that changes something, and gives what the call stores its origin.
type audit struct {
	log   *slog.Logger
	known bool // only calls of somebody who is known
}

// Audit is the audit for handlers that servers and users reach alike, such as the node's own image API: calls of users are
// written down, those of servers have been where they came from.
func Audit(log *slog.Logger) connect.Interceptor { return &audit{log: log, known: true} }

// AuditedOptions is HandlerOptions with the audit, for handlers beside those of Server.
func AuditedOptions(log *slog.Logger) []connect.HandlerOption {
	return append(HandlerOptions(), connect.WithInterceptors(&audit{log: log}))
}

// reads are the methods that change nothing. What is not here is audited.
func reads(method string) bool {
	switch method {
	case "List", "Get", "Inspect", "Watch", "Top", "Stats", "Logs", "Info", "DiskUsage", "Diff", "CopyFrom", "Wait", "Version",
		"Status", "Plan", "ListTokens", "ListReleases", "Explain", "Events", "Environments", "Describe", "Export", "History",
		"Locate", "FindName", "Search":
		return true
	}
	return false
}

// begin gives the context of an audited call, and what writes the line at its end; nil for a call that is not audited.
func (a *audit) begin(ctx context.Context, procedure string) (context.Context, func(target []slog.Attr, err error)) {
	who := caller.Of(ctx)
	if reads(path.Base(procedure)) || a.known && who.User == "" {
		return ctx, nil
	}
	call := strings.TrimPrefix(procedure, "/gantry.v1.")
	by := who.User
	if machine, ok := identity.CallerFrom(ctx); by == "" && ok {
		by = "node " + machine.Node
	}
	if by == "" {
		by = "unknown"
	}
	began := time.Now()
	return store.WithOrigin(ctx, store.Origin{By: by, Cause: call}), func(target []slog.Attr, err error) {
		attrs := append([]slog.Attr{slog.String("by", by), slog.String("call", call)}, target...)
		if who.Node != "" {
			attrs = append(attrs, slog.String("via", who.Node))
		}
		attrs = append(attrs, slog.String("result", result(err)), slog.Duration("took", time.Since(began).Round(time.Microsecond)))
		a.log.LogAttrs(context.WithoutCancel(ctx), slog.LevelInfo, "audit", attrs...)
	}
}

// result is "ok" or the kind of the error.
func result(err error) string {
	if err == nil {
		return "ok"
	}
	if kind := fault.KindOf(err); kind != fault.Unknown {
		return string(kind)
	}
	return strings.ReplaceAll(wire.Encode(err).Code().String(), "_", " ")
}

// WrapUnary is part of connect.Interceptor.
func (a *audit) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		ctx, end := a.begin(ctx, req.Spec().Procedure)
		resp, err := next(ctx, req)
		if end != nil {
			m, _ := req.Any().(proto.Message)
			end(targetOf(m), err)
		}
		return resp, err
	}
}

// WrapStreamingClient is part of connect.Interceptor.
func (*audit) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler is part of connect.Interceptor. The line is written when the stream ends.
func (a *audit) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		ctx, end := a.begin(ctx, conn.Spec().Procedure)
		if end == nil {
			return next(ctx, conn)
		}
		first := &firstMessage{StreamingHandlerConn: conn}
		err := next(ctx, first)
		end(first.target, err)
		return err
	}
}

// firstMessage remembers what the first message of a stream says of the target.
type firstMessage struct {
	connect.StreamingHandlerConn
	seen   bool
	target []slog.Attr
}

// Receive is part of connect.StreamingHandlerConn.
func (f *firstMessage) Receive(m any) error {
	err := f.StreamingHandlerConn.Receive(m)
	if pm, ok := m.(proto.Message); ok && err == nil && !f.seen {
		f.seen, f.target = true, targetOf(pm)
	}
	return err
}

// targetOf picks from a request what it is about. All else, contents and variables for one, stays out of the log.
func targetOf(m proto.Message) []slog.Attr {
	var out []slog.Attr
	if m != nil {
		addTargets(m.ProtoReflect(), &out)
	}
	return out
}

func addTargets(m protoreflect.Message, out *[]slog.Attr) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch name := string(f.Name()); {
		case f.IsMap():
		case f.IsList():
			if f.Kind() == protoreflect.StringKind && (name == "services" || name == "targets" || name == "tags") {
				var words []string
				for i := range v.List().Len() {
					words = append(words, v.List().Get(i).String())
				}
				*out = append(*out, slog.String(name, strings.Join(words, " ")))
			}
		case f.Kind() == protoreflect.MessageKind && (name == "target" || name == "start"):
			addTargets(v.Message(), out)
		case f.Kind() == protoreflect.StringKind && told(name):
			*out = append(*out, slog.String(name, v.String()))
		}
		return true
	})
}

// told says which fields name what a request is about.
func told(field string) bool {
	switch field {
	case "environment", "app", "service", "target", "name", "node", "id", "image", "source", "subject", "key", "path", "signal", "role",
		"availability", "reference":
		return true
	}
	return false
}
