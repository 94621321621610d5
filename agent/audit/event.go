// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

// Decision is what became of a request.
type Decision string

// The decisions.
const (
	Allowed Decision = "allowed"
	Denied  Decision = "denied"
	Failed  Decision = "error" // allowed, and then it did not work
)

// Phase tells the two records of a change apart. A read has one record, and no
// phase.
type Phase string

// The phases.
const (
	Intent  Phase = "intent"  // durable before the change is made
	Outcome Phase = "outcome" // durable before the change is answered
)

// The operations of the log's own records. Their Reason says more.
const (
	OperationStart   = "audit.start"   // the agent opened the log
	OperationUnlock  = "audit.unlock"  // the first record with a MAC after unsealed ones
	OperationSegment = "audit.segment" // a new segment, because the one before was full
	OperationRewrite = "audit.rewrite" // a new segment, because the one before could not be made durable
	OperationBreak   = "audit.break"   // the log before this record is not what was written
)

// Event is what happened. Texts of more than 4096 bytes are cut, and bytes that
// are not UTF-8 become U+FFFD.
type Event struct {
	Time        time.Time       // zero: when it is appended
	Caller      identity.Caller // who asked, how that was proven, and the request's ID
	Operation   string          // "get", "put", …
	Phase       Phase           // of a change; "" for a read
	Batch       [16]byte        // of a change: ties outcomes to intents, and to the store
	Path        string          // what it was about; "" for nothing
	SecretID    secret.ID       // zero when there is none
	Version     uint64          // 0 when there is none
	Revision    uint64          // of the stored record, after the change
	Decision    Decision        // what became of it
	DecidingID  spiffeid.ID     // which of the caller's IDs the policy allowed
	Policy      string          // which policy decided
	Reason      string          // why it was denied or failed; never a value
	Count       int             // how many more times; 0 for a single event
	Development bool            // the agent ran for development; set by the log too
}

// Record is one line of the log.
type Record struct {
	Event
	Index   uint64   // from 1 up, without gaps
	Sealed  bool     // written without a key: MAC is a plain SHA-256
	MAC     [32]byte // of this record and, through the one before, of all before
	Segment string   // the name of the file it is in
	Line    int      // in that file, from 1 up; the header is line 1
}

// Head names the end of the log at some time: a record and, through its MAC,
// everything before it. A head that is kept elsewhere is an anchor: Open and
// Verify tell whether the log still contains it.
type Head struct {
	Index uint64 // 0 for an empty log
	MAC   [32]byte
}

const headSize = 8 + 32

// Append appends the persisted form of h to buffer: the index as 8 bytes, big
// endian, and the MAC.
func (h Head) Append(buffer []byte) []byte {
	return append(binary.BigEndian.AppendUint64(buffer, h.Index), h.MAC[:]...)
}

// ParseHead reads what Head.Append wrote. The error is secret.ErrTampered.
func ParseHead(data []byte) (Head, error) {
	if len(data) != headSize {
		return Head{}, fmt.Errorf("reading the anchor of the audit log: %d bytes where %d are expected: %w", len(data), headSize, secret.ErrTampered)
	}
	h := Head{Index: binary.BigEndian.Uint64(data)}
	copy(h.MAC[:], data[8:])
	return h, nil
}
