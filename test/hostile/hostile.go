// Package hostile makes messages that nobody would send who means well, and sends them.
//
// Methods lists the API; a Filler makes messages for a method at random; a Way sends them and reads the answer as far as it
// tells how the call ended. A Filler is for one goroutine; Ways are safe in parallel. What to expect is for the tests to say.
package hostile

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// Methods lists every method of the API by its procedure.
func Methods() map[string]protoreflect.MethodDescriptor {
	out := map[string]protoreflect.MethodDescriptor{}
	protoregistry.GlobalFiles.RangeFilesByPackage("gantry.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				out[fmt.Sprintf("/%s/%s", s.FullName(), m.Name())] = m
			}
		}
		return true
	})
	return out
}

// Filler makes messages at random: parts that are missing, parts that fit, and parts that do harm where nobody has looked.
type Filler struct {
	*rand.Rand
	rare int // of so many values one does not fit
}

// New makes a filler that always makes the same messages of a seed.
func New(seed uint64) *Filler { return &Filler{rand.New(rand.NewPCG(seed, 1)), 8} }

// fill sets some of the fields of a message.
func (f *Filler) fill(m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		d := fields.Get(i)
		plain := d.Kind() == protoreflect.StringKind && !d.IsList() && !d.IsMap()
		if f.IntN(10) < 3 && (!plain || f.IntN(f.rare) == 0) || depth == 0 && d.Kind() == protoreflect.MessageKind {
			continue
		}
		switch {
		case d.IsMap():
			for range f.IntN(3) {
				v := m.Mutable(d).Map().NewValue()
				m.Mutable(d).Map().Set(f.value(d.MapKey(), v, string(d.Name()), depth).MapKey(), f.value(d.MapValue(), v, string(d.Name()), depth))
			}
		case d.IsList():
			for range f.IntN(3) {
				l := m.Mutable(d).List()
				l.Append(f.value(d, l.NewElement(), string(d.Name()), depth))
			}
		default:
			m.Set(d, f.value(d, m.NewField(d), string(d.Name()), depth))
		}
	}
}

func (f *Filler) value(d protoreflect.FieldDescriptor, fresh protoreflect.Value, name string, depth int) protoreflect.Value {
	switch d.Kind() {
	case protoreflect.MessageKind:
		if depth > 0 && f.IntN(f.rare) > 0 {
			f.fill(fresh.Message(), depth-1)
		}
		return fresh
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(f.text(name))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(f.text(name)))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(f.IntN(2) == 0)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(f.IntN(d.Enum().Values().Len()+1) - f.IntN(20)/19))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(f.number()))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(f.number())
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(f.number()))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(f.number()))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64([]float64{0, 0.5, -1, math.NaN(), math.Inf(1), 1e300}[f.IntN(6)])
	}
	panic(fmt.Sprintf("no value for a field of kind %s", d.Kind()))
}

func (f *Filler) number() int64 {
	odd := []int64{-1, math.MaxInt32, math.MinInt32, math.MaxInt64, math.MinInt64, 1 << 40, 100_001}
	if f.IntN(min(f.rare, 8)) == 0 { // few of them are refused at once
		return odd[f.IntN(len(odd))]
	}
	return int64(f.IntN(4))
}

// text is mostly what the field may be, so that the message gets beyond the first check.
func (f *Filler) text(name string) string {
	odd := []string{
		"", " ", "/", "..", "../../etc", "\x1b[2J\x1b]0;x\a", "a\nb", "\x00", "production/", "//", "a/b/c/d", "%s%n", "-rf",
		"\u202e\u2028", "é", "1.2.3.4.5", string(make([]byte, 300)), "sha256:", "::", "0", "-1", "99999999999999999999", "*", "=", "@", "a@b:c",
	}
	if f.IntN(f.rare) == 0 {
		return odd[f.IntN(len(odd))]
	}
	fits := map[string][]string{
		"environment": {"production"}, "app": {"shop"}, "service": {"web", "db", "tick"}, "services": {"web", "db", "tick"},
		"volumes": {"data"}, "networks": {"default"}, "secrets": {"data"}, "configs": {"data"}, "depends_on": {"db"},
		"key": {"production/shop/data", "production/shop/default"}, "rootfs": {"", "/srv"}, "name": {"web", "data", "key", "other1"}, "target": {"web", "shop/web.1", "i1"}, "targets": {"web", "i1"},
		"source": {"production/shop/data", "production/data"}, "network": {"production/shop/default"}, "image": {"app:1"},
		"node": {"bbbbbbbbbbbb", "aaaaaaaaaaaa", "other1"}, "api_address": {"10.0.0.9:7450"}, "address": {"10.0.0.9"}, "driver": {"", "pool"},
		"role": {"node", "server"}, "mode": {"", "global", "job", "host"}, "strategy": {"rolling", "canary", "blue-green", "recreate"},
		"schedule": {"* * * * *", "@hourly", ""}, "time_zone": {"Europe/Berlin", ""}, "availability": {"drain", "active"},
		"failure_action": {"rollback", "pause", "continue"}, "order": {"start-first", "stop-first"}, "constraints": {"node.labels.a == b"},
		"image_digest": {"sha256:0000000000000000000000000000000000000000000000000000000000000000"}, "signal": {"TERM", "9"}, "path": {"/etc", "a"},
		"instance": {"i1", "i2"}, "removed": {"i1", "i2"}, "condition": {"service_healthy"},
	}
	if words := fits[name]; len(words) > 0 {
		return words[f.IntN(len(words))]
	}
	return []string{"a", "b", "production/shop/data", "10.0.0.1", "web", "1"}[f.IntN(6)]
}

// Message makes one for a method.
func (f *Filler) Message(m protoreflect.MethodDescriptor) proto.Message {
	f.rare = []int{3, 8, 30, 200}[f.IntN(4)]
	msg := proto.Message(dynamicpb.NewMessage(m.Input()))
	f.fill(msg.ProtoReflect(), 1+f.IntN(6))
	if f.IntN(4) > 0 {
		return plausible(msg)
	}
	return msg
}

// plausible makes good in a message what would be refused at first sight, so that the rest of it is looked at.
func plausible(msg proto.Message) proto.Message {
	switch msg.ProtoReflect().Descriptor().Name() {
	case "ApplyRequest":
		return Typed(msg, &gantryv1.ApplyRequest{}, func(m *gantryv1.ApplyRequest) {
			if m.Environment, m.App, m.CheckIndex, m.Services = "production", "shop", 0, nil; m.Spec == nil {
				m.Spec = &gantryv1.AppSpec{}
			}
			if len(m.Spec.Services) == 0 {
				m.Spec.Services = map[string]*gantryv1.ServiceSpec{"web": {}}
			}
			for name, s := range m.Spec.Services {
				if s.Container == nil {
					s.Container = &gantryv1.ContainerSpec{}
				}
				if s.Container.Image = "app:1"; !slices.Contains([]string{"web", "db", "tick"}, name) {
					delete(m.Spec.Services, name)
					m.Spec.Services["tick"] = s
				}
			}
		})
	case "CreateInstanceRequest":
		return Typed(msg, &gantryv1.CreateInstanceRequest{}, func(m *gantryv1.CreateInstanceRequest) {
			if m.Environment, m.Name, m.App = "production", "", ""; m.Spec == nil {
				m.Spec = &gantryv1.ContainerSpec{}
			}
			m.Spec.Image = "app:1"
		})
	}
	return msg
}

// Typed gives a message its own type, and changes it.
func Typed[T proto.Message](from proto.Message, to T, change func(T)) proto.Message {
	b, err := proto.Marshal(from)
	if err != nil {
		return from
	}
	if err := proto.Unmarshal(b, to); err != nil {
		return from
	}
	change(to)
	return to
}

// Messages makes several for a method that takes much, one for others.
func (f *Filler) Messages(m protoreflect.MethodDescriptor) (out []proto.Message) {
	n := 1
	switch m.Input().Name() {
	case "ApplyRequest", "CreateInstanceRequest", "NodeReport":
		n = 10
	case "ScaleRequest", "RollbackRequest", "OperationTarget", "InstanceTarget", "RemoveAppRequest":
		n = 3
	}
	for range n {
		out = append(out, f.Message(m))
	}
	return out
}

// Way is how to reach somebody: a client, and what comes before the path.
type Way struct {
	Client  *http.Client
	Base    string
	Headers map[string]string
}

// Answer is how a call ended.
type Answer struct {
	Code    connect.Code // 0 for success, or a stream that goes on
	Message string
	Err     error // there was no answer
	GoesOn  bool  // ctx has ended before the call
}

// Call sends one message to a method and reads the answer, or what there is of it.
func (w Way) Call(ctx context.Context, procedure string, m protoreflect.MethodDescriptor, msg proto.Message) Answer {
	body, err := proto.Marshal(msg)
	if err != nil {
		return Answer{Err: err}
	}
	if !m.IsStreamingClient() && !m.IsStreamingServer() {
		return w.Post(ctx, procedure, "application/proto", body)
	}
	body = append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))), body...)
	return w.Post(ctx, procedure, streaming, body)
}

const streaming = "application/connect+proto"

// Post sends a body to a path. Redirections are not followed.
func (w Way) Post(ctx context.Context, path, kind string, body []byte) Answer {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.Base+path, bytes.NewReader(body))
	if err != nil {
		return Answer{Err: err}
	}
	req.Header.Set("Content-Type", kind)
	req.Header.Set("Connect-Protocol-Version", "1")
	for k, v := range w.Headers {
		req.Header.Set(k, v)
	}
	client := *w.Client
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := client.Do(req)
	if ctx.Err() != nil {
		return Answer{GoesOn: true}
	}
	if err != nil {
		return Answer{Err: err}
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	switch {
	case ctx.Err() != nil:
		return Answer{GoesOn: true}
	case err != nil:
		return Answer{Err: err}
	case resp.StatusCode != http.StatusOK && len(text) == 0:
		return Answer{Err: fmt.Errorf("HTTP %s", resp.Status)}
	case resp.StatusCode != http.StatusOK:
		return failure(text)
	case kind == streaming:
		return failure(lastEnvelope(text))
	}
	return Answer{}
}

// lastEnvelope is the content of the one that ends a stream.
func lastEnvelope(text []byte) []byte {
	for len(text) >= 5 {
		size := int(binary.BigEndian.Uint32(text[1:5]))
		if len(text) < 5+size {
			return nil
		}
		if text[0]&2 != 0 {
			var end struct {
				Error json.RawMessage `json:"error"`
			}
			if json.Unmarshal(text[5:5+size], &end) == nil {
				return end.Error
			}
		}
		text = text[5+size:]
	}
	return nil
}

func failure(text []byte) Answer {
	if len(text) == 0 {
		return Answer{}
	}
	var e struct {
		Code    connect.Code `json:"code"`
		Message string       `json:"message"`
	}
	if err := json.Unmarshal(text, &e); err != nil {
		return Answer{Err: fmt.Errorf("not an answer: %.200s", strings.TrimSpace(string(text)))}
	}
	return Answer{Code: e.Code, Message: e.Message}
}
