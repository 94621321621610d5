// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// Wiper is a message with values.
type Wiper interface {
	// Wipe clears the values.
	Wipe()
}

// Codec is protobuf's encoding with buffers that are cleared after use.
type Codec struct {
	// Pool lends the buffers.
	Pool *Pool

	// WipeSent clears the values of a message as soon as it is encoded. The
	// server does that with its answers. A client does not: what it sends
	// belongs to its caller.
	WipeSent bool
}

var _ encoding.CodecV2 = Codec{}

// Name returns "proto": nothing on the wire differs from gRPC's own codec.
func (Codec) Name() string { return "proto" }

// Marshal encodes a proto.Message.
func (c Codec) Marshal(message any) (mem.BufferSlice, error) {
	m, ok := message.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("encoding a %T, which is no protobuf message", message)
	}
	if c.WipeSent {
		if w, ok := message.(Wiper); ok {
			defer w.Wipe()
		}
	}
	buffer := c.Pool.Get(proto.Size(m))
	// Size has just been asked, and nobody else has the message.
	encoded, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend((*buffer)[:0], m)
	if err != nil {
		c.Pool.Put(buffer)
		return nil, fmt.Errorf("encoding a %T: %w", message, err)
	}
	*buffer = encoded
	return mem.BufferSlice{mem.NewBuffer(buffer, c.Pool)}, nil
}

// Unmarshal decodes into a proto.Message, which shares no bytes with data.
func (c Codec) Unmarshal(data mem.BufferSlice, message any) error {
	m, ok := message.(proto.Message)
	if !ok {
		return fmt.Errorf("decoding a %T, which is no protobuf message", message)
	}
	if len(data) == 1 {
		return proto.Unmarshal(data[0].ReadOnlyData(), m)
	}
	whole := c.Pool.Get(data.Len())
	defer c.Pool.Put(whole)
	data.CopyTo(*whole)
	return proto.Unmarshal(*whole, m)
}
