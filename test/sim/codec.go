package main

import (
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// options has most nodes count endpoints without decoding them: that is the work of a thousand machines, which the one
// machine of the simulator need not do. Every byte is received all the same.
func (n *simNode) options() []connect.ClientOption {
	c := &countingCodec{node: n}
	return []connect.ClientOption{connect.WithCodec(c)}
}

// countingCodec is protobuf, without endpoints where the node does not keep them.
type countingCodec struct{ node *simNode }

// Name is part of connect.Codec.
func (c *countingCodec) Name() string { return "proto" }

// Marshal is part of connect.Codec.
func (c *countingCodec) Marshal(m any) ([]byte, error) {
	p, ok := m.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is no message", m)
	}
	return proto.Marshal(p)
}

// Unmarshal is part of connect.Codec.
func (c *countingCodec) Unmarshal(b []byte, m any) error {
	u, ok := m.(*gantryv1.NodeUpdate)
	if !ok {
		return fmt.Errorf("%T is no update", m)
	}
	c.node.count.bytes.Add(int64(len(b)))
	if !c.node.keeps {
		b = c.without(b)
	}
	return proto.Unmarshal(b, u)
}

// without cuts the field endpoints out of an update.
func (c *countingCodec) without(b []byte) []byte {
	out := b[:0:0]
	for rest := b; len(rest) > 0; {
		number, kind, head := protowire.ConsumeTag(rest)
		length := protowire.ConsumeFieldValue(number, kind, rest[max(head, 0):])
		if head < 0 || length < 0 {
			return b // whatever is wrong with it, the decoder will say
		}
		if number == endpointsField {
			c.node.count.endpoints.Add(1)
		} else {
			out = append(out, rest[:head+length]...)
		}
		rest = rest[head+length:]
	}
	return out
}

const endpointsField = 4 // of NodeUpdate
