// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/anishathalye/porcupine"

	"github.com/keyhole-agent/keyhole/backend"
)

// registers is how many records the clients of a history share.
const registers = 3

// call is one operation of a history: a read of all registers, or a write of one
// of them on the condition that another is at a revision.
type call struct {
	write     bool
	target    int
	condition int
	rev       backend.Seq
}

// answer is what a call returned, and also the state of the model: the sequence
// number, and each register's revision.
type answer struct {
	conflict bool
	seq      backend.Seq
	revs     [registers]backend.Seq
}

// registerModel is the port in a few lines: a write either conflicts, or takes
// the next sequence number.
func registerModel() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return answer{} },
		Step: func(state, input, output any) (bool, any) {
			s, in, out := state.(answer), input.(call), output.(answer)
			if !in.write {
				return out == s, s
			}
			if s.revs[in.condition] != in.rev {
				return out.conflict, s
			}
			s.seq++
			s.revs[in.target] = s.seq
			return !out.conflict && out.seq == s.seq, s
		},
	}
}

// testLinearizable records what concurrent clients saw, and asks whether one
// order of all calls explains it (Herlihy and Wing, 1990).
func testLinearizable(t *testing.T, b backend.Backend) {
	const clients, calls = 4, 60
	var clock atomic.Int64 // orders the beginnings and ends of calls
	histories := make([][]porcupine.Operation, clients)
	var wg sync.WaitGroup
	for client := range clients {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(client), 1)) //nolint:gosec // a choice of calls, no secret
			var last answer
			for range calls {
				in := call{write: random.IntN(2) == 0, target: random.IntN(registers), condition: random.IntN(registers)}
				in.rev = last.revs[in.condition]
				begin := clock.Add(1)
				out, err := in.do(t, b)
				if err != nil {
					t.Errorf("%+v: %v", in, err)
					return
				}
				if !in.write {
					last = out
				}
				histories[client] = append(histories[client], porcupine.Operation{
					ClientId: client, Input: in, Call: begin, Output: out, Return: clock.Add(1),
				})
			}
		})
	}
	wg.Wait()
	var all []porcupine.Operation
	for _, h := range histories {
		all = append(all, h...)
	}
	if !porcupine.CheckOperations(registerModel(), all) {
		t.Errorf("no order explains these calls: %v", all)
	}
}

func (in call) do(t *testing.T, b backend.Backend) (answer, error) {
	name := func(register int) backend.Key { return key("register" + strconv.Itoa(register)) }
	if in.write {
		results, err := b.Commit(t.Context(), []backend.Batch{{
			If:  []backend.Cond{{Key: name(in.condition), Rev: in.rev}},
			Ops: []backend.Op{{Record: backend.Record{Key: name(in.target)}}},
		}})
		if err != nil {
			return answer{}, err
		}
		return answer{conflict: results[0].Conflict, seq: results[0].Seq}, nil
	}
	var keys []backend.Key
	for i := range registers {
		keys = append(keys, name(i))
	}
	records, seq, err := b.Get(t.Context(), keys)
	out := answer{seq: seq}
	for _, r := range records {
		for i, k := range keys {
			if r.Key == k {
				out.revs[i] = r.Rev
			}
		}
	}
	return out, err
}
