// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"math/bits"
	"sync"

	"google.golang.org/grpc/mem"
)

// The capacities of pooled buffers are powers of two from 2 KiB to 2 MiB.
// Nothing smaller: gRPC would not give a buffer of 1 KiB or less back, and so
// it would never be cleared.
const (
	smallestBits = 11
	largestBits  = 21
)

// Pool lends buffers, and clears them when they come back. The zero Pool is
// ready to use.
type Pool struct {
	classes [largestBits - smallestBits + 1]sync.Pool
}

var _ mem.BufferPool = (*Pool)(nil)

// Get returns a buffer of the given length, all zero.
func (p *Pool) Get(length int) *[]byte {
	class := classOf(length)
	if class >= len(p.classes) {
		buffer := make([]byte, length)
		return &buffer
	}
	if buffer, ok := p.classes[class].Get().(*[]byte); ok {
		*buffer = (*buffer)[:length]
		return buffer
	}
	buffer := make([]byte, length, 1<<(class+smallestBits))
	return &buffer
}

// Put clears a buffer that Get returned, and keeps it.
func (p *Pool) Put(buffer *[]byte) {
	size := cap(*buffer)
	clear((*buffer)[:size])
	class := classOf(size)
	if class < len(p.classes) && size == 1<<(class+smallestBits) {
		p.classes[class].Put(buffer)
	}
}

// classOf returns the index of the smallest class that holds length bytes; one
// beyond the last when none does.
func classOf(length int) int {
	return max(bits.Len(uint(max(length, 1)-1))-smallestBits, 0)
}
