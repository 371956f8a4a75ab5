package wire_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"connectrpc.com/connect"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
)

func TestRoundTripKeepsKindMessageAndHint(t *testing.T) {
	for _, kind := range wire.Kinds() {
		in := fault.New(kind, "volume \"db-1\" is on node n3\n100%% full: é").WithHint("gantry volume rm 'ü' 50%% → %s", kind)
		enc := wire.Encode(fmt.Errorf("while starting: %w", in))
		if enc.Code() == connect.CodeUnknown {
			t.Errorf("%s: no code", kind)
		}
		out := wire.Decode(enc)
		if got := fault.KindOf(out); got != kind {
			t.Errorf("kind %s came back as %s", kind, got)
		}
		if out.Error() != "while starting: "+in.Error() {
			t.Errorf("message came back as %q", out)
		}
		if fault.HintOf(out) != in.Hint {
			t.Errorf("hint came back as %q", fault.HintOf(out))
		}
	}
}

func TestKindsHaveCodesOfTheirOwn(t *testing.T) {
	seen := map[connect.Code]fault.Kind{}
	for _, kind := range wire.Kinds() {
		code := wire.Encode(fault.New(kind, "x")).Code()
		if other, ok := seen[code]; ok {
			t.Errorf("%s and %s share code %s", kind, other, code)
		}
		seen[code] = kind
		// A peer that drops the metadata still learns the kind.
		if got := fault.KindOf(wire.Decode(connect.NewError(code, errors.New("x")))); got != kind {
			t.Errorf("code %s decodes to %q, want %q", code, got, kind)
		}
	}
}

func TestOtherErrors(t *testing.T) {
	if wire.Encode(nil) != nil || wire.Decode(nil) != nil {
		t.Error("nil must stay nil")
	}
	if err := wire.Decode(io.EOF); err != io.EOF {
		t.Errorf("EOF came back as %v", err)
	}
	if k := fault.KindOf(wire.Decode(context.Canceled)); k != fault.Canceled {
		t.Errorf("cancel has kind %q", k)
	}
	if c := wire.Encode(fmt.Errorf("x: %w", context.DeadlineExceeded)).Code(); c != connect.CodeDeadlineExceeded {
		t.Errorf("deadline has code %s", c)
	}
	if got := wire.Encode(errors.New("plain")); got.Code() != connect.CodeUnknown || got.Message() != "plain" {
		t.Errorf("plain error is %v", got)
	}
	ce := connect.NewError(connect.CodeAborted, errors.New("x"))
	if wire.Encode(ce) != ce {
		t.Error("a Connect error must pass unchanged")
	}
	unknown := connect.NewError(connect.CodeNotFound, errors.New("x"))
	unknown.Meta().Set(wire.KindHeader, "kind-of-the-future")
	if k := fault.KindOf(wire.Decode(unknown)); k != fault.NotFound {
		t.Errorf("unknown kind decodes to %q", k)
	}
}
