// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

// Open continues the log in a folder, or begins one. It checks the log's end,
// cuts off what a crash left half written, and writes a first record that says
// what it found. A log that is not what was written is no error: it is logged,
// Found tells, and the first record of a new segment names the break.
//
// Errors: secret.ErrInvalid for the configuration or the folder's mode,
// secret.ErrInUse when another Log has the folder, otherwise the filesystem's.
func Open(config Config) (*Log, error) { return open(config, system{}) }

func open(config Config, files files) (*Log, error) {
	l, err := prepare(config, files)
	if err != nil {
		return nil, fmt.Errorf("opening the audit log: %w", err)
	}
	if err := l.resume(config.Anchor); err != nil {
		if l.segment != nil {
			err = errors.Join(err, l.segment.file.Close())
		}
		return nil, fmt.Errorf("opening the audit log in %s: %w", l.dir, errors.Join(err, l.folder.Close()))
	}
	l.upkeep.Go(l.run)
	return l, nil
}

// prepare makes a Log that has its folder and no segment yet.
func prepare(config Config, files files) (*Log, error) {
	c, err := newChain(config.Key)
	if err != nil {
		return nil, err
	}
	l := &Log{
		dir: config.Dir, files: files, chain: c,
		segmentBytes: config.SegmentBytes, syncEvery: config.SyncEvery, strict: config.StrictReads,
		development: config.Development, now: config.Now, logger: config.Logger,
		self: identity.Caller{Source: identity.Agent, Process: identity.Process{
			PID: os.Getpid(), UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()),
		}},
		syncing: make(chan struct{}, 1), wake: make(chan struct{}, 1), stop: make(chan struct{}),
		unfinished: make(map[intentKey]intent),
		denials:    denials{recent: make(map[string]*denial)},
	}
	if l.segmentBytes == 0 {
		l.segmentBytes = DefaultSegmentBytes
	}
	if l.syncEvery == 0 {
		l.syncEvery = DefaultSyncEvery
	}
	if l.now == nil {
		l.now = systemClock
	}
	if l.logger == nil {
		l.logger = slog.New(slog.DiscardHandler)
	}
	if l.segmentBytes < 0 || l.syncEvery < 0 {
		return nil, fmt.Errorf("%w configuration: negative segment size or time", secret.ErrInvalid)
	}
	l.folder, err = lockFolder(l.dir)
	return l, err
}

// lockFolder makes the folder if it is absent, and keeps other Logs out of it
// until the file is closed.
func lockFolder(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	// Records are not durable in a folder that a power cut takes away.
	if err := (system{}).SyncFolder(filepath.Dir(dir)); err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.IsDir():
		err = fmt.Errorf("%w folder: %s is a file", secret.ErrInvalid, dir)
	case info.Mode().Perm()&0o022 != 0:
		err = fmt.Errorf("%w folder: %s has mode %#o, so that others may write it; chmod it to 0700", secret.ErrInvalid, dir, info.Mode().Perm())
	default:
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("%s: %w", dir, secret.ErrInUse)
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// resume finds the end of the log and makes the segment to go on in.
func (l *Log) resume(anchor *Head) error {
	if err := errors.Join(removeIfThere(filepath.Join(l.dir, nextName)), removeIfThere(filepath.Join(l.dir, spareName))); err != nil {
		return err
	}
	v, last, err := l.inspect(anchor)
	if err != nil {
		return err
	}
	l.found = v.report
	if v.unrecorded {
		return l.breakOff(v, anchor)
	}
	l.head = Head{v.next - 1, v.previous}
	l.synced = l.head
	event := l.ownEvent(OperationStart, "")
	if last == nil {
		return l.beginLocked(l.head, nil, &event, 0)
	}
	if err := l.reopen(last, v.report.Torn); err != nil {
		event := l.ownEvent(OperationRewrite, fmt.Sprintf("%s: %v", last.name, err))
		return l.beginLocked(l.head, nil, &event, 0)
	}
	if torn := v.report.Torn; torn != nil {
		event.Reason = fmt.Sprintf("cut off %d half-written bytes at the end of %s", torn.Bytes, torn.Segment)
		l.logger.Warn("the audit log ended in a half-written record, which was cut off", "segment", torn.Segment, "bytes", torn.Bytes)
	}
	return l.writeOne(event)
}

// inspect checks the log from the record on that matters first: the anchor, the
// earliest unfinished change, or the beginning of the last segment, which is
// returned too. It collects the unfinished changes. Files that are not the
// log's, and stand where it is going to go on, are moved aside when there is a
// key to tell.
func (l *Log) inspect(anchor *Head) (*verifier, *place, error) {
	places, err := listSegments(l.dir)
	if err != nil {
		return nil, nil, err
	}
	v := newVerifier(l.chain, anchor)
	v.lenient = true
	v.accepted = func(r *Record) { l.noteLocked(r.Index, &r.Event) }
	if len(places) > 0 {
		from, err := l.earliest(v, places, anchor)
		if err != nil {
			return nil, nil, err
		}
		if from > 0 {
			v.next, v.link = places[from].first, unknown
			places = places[from:]
		}
	}
	known := l.unfinished
	l.unfinished = make(map[intentKey]intent)
	if err := v.run(l.dir, places); err != nil {
		l.unfinished = known
		return nil, nil, err
	}
	for _, at := range v.foreign {
		if at.first < v.next || l.chain.sealed() {
			continue // it is in nobody's way
		}
		if err := l.reject(at.name); err != nil {
			return nil, nil, err
		}
	}
	if len(places) == 0 {
		return v, nil, nil
	}
	return v, &places[len(places)-1], nil
}

// earliest returns the position of the segment from which on to check.
func (l *Log) earliest(v *verifier, places []place, anchor *Head) (int, error) {
	last := places[len(places)-1]
	want := last.first
	authentic := false
	_, err := readLines(filepath.Join(l.dir, last.name), func(first line) bool {
		h, err := parseHeader(first.text)
		if authentic = err == nil && h.First == last.first && v.authentic(&h, first.text); authentic && h.Unfinished > 0 {
			want = min(want, h.Unfinished)
		}
		return false
	})
	if err != nil || !authentic {
		return 0, err
	}
	if anchor != nil {
		want = min(want, anchor.Index)
	}
	for i := len(places) - 1; i > 0; i-- {
		if places[i].first <= want {
			return i, nil
		}
	}
	return 0, nil
}

// reopen goes on in the last segment. What the previous process wrote is made
// durable first: the chain will rest on it.
func (l *Log) reopen(last *place, torn *Torn) error {
	path := filepath.Join(l.dir, last.name)
	f, err := l.files.Open(path)
	if err != nil {
		return err
	}
	left, err := readLines(path, func(line) bool { return true })
	if err == nil {
		err = f.Datasync()
	}
	if err == nil {
		err = l.files.SyncFolder(l.dir) // its name: the chain will rest on it
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	s := &segment{file: f, name: last.name, end: left.offset, synced: left.offset, size: max(l.segmentBytes, left.offset)}
	l.segment = s
	if torn != nil {
		s.junk = true // cut off by the first write
		return nil
	}
	// What is missing of the reserved space is met by the write that needs it.
	_ = f.Reserve(s.end, s.size-s.end)
	return nil
}

// breakOff begins a segment behind everything that is, or was, in the log.
func (l *Log) breakOff(v *verifier, anchor *Head) error {
	previous := Head{v.next - 1, v.previous}
	if l.head.Index >= previous.Index { // this process wrote it
		previous = l.head
	}
	if anchor != nil && anchor.Index > previous.Index {
		previous = *anchor
	}
	reason := l.found.Err().Error()
	for _, p := range l.found.Problems {
		l.logger.Error("the audit log is not what was written; it goes on in a new segment", "problem", p.String())
	}
	head, synced := l.head, l.synced
	l.head, l.synced = previous, previous
	event := l.ownEvent(OperationBreak, reason)
	if err := l.beginLocked(previous, nil, &event, 0); err != nil {
		l.head, l.synced = head, synced
		return err
	}
	return nil
}

// Unlock gives a log the key that it was opened without. It checks the end of
// the log like Open, now with the key, and begins a segment whose first record
// authenticates what was written while sealed, or names the break. The key is
// not kept.
//
// Errors: secret.ErrInvalid for a key that is too short or not the first;
// otherwise the log stays sealed and Unlock may be called again.
func (l *Log) Unlock(key []byte, anchor *Head) error {
	if key == nil {
		return fmt.Errorf("unlocking the audit log: %w key: there is none", secret.ErrInvalid)
	}
	c, err := newChain(key)
	if err != nil {
		return fmt.Errorf("unlocking the audit log: %w", err)
	}
	l.syncing <- struct{}{}
	defer func() { <-l.syncing }()
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return errClosed()
	case !l.chain.sealed():
		return fmt.Errorf("unlocking the audit log: %w: it has a key already", secret.ErrInvalid)
	}
	sealed := l.chain
	l.chain = c
	if err := l.authenticateLocked(anchor); err != nil {
		l.chain = sealed
		return fmt.Errorf("unlocking the audit log: %w: %w", secret.ErrUnavailable, err)
	}
	return nil
}

func (l *Log) authenticateLocked(anchor *Head) error {
	if l.failed != nil {
		return l.failed
	}
	if err := l.datasyncLocked(); err != nil {
		return err
	}
	v, _, err := l.inspect(anchor)
	if err != nil {
		return err
	}
	if (Head{v.next - 1, v.previous}) != l.head {
		v.problem(Problem{Kind: Changed, First: l.head.Index, Last: l.head.Index, Detail: "what was written while sealed is not what is there"})
	}
	old, torn := l.segment, l.found.Torn
	l.found = v.report
	if l.found.Torn == nil {
		l.found.Torn = torn // as Open found it
	}
	if v.unrecorded {
		err = l.breakOff(v, anchor)
	} else {
		event := l.ownEvent(OperationUnlock, "")
		err = l.beginLocked(l.head, nil, &event, 0)
	}
	if err != nil {
		return err
	}
	if v.unrecorded {
		return old.file.Close() // as it is: it is evidence
	}
	l.retireLocked(old, old.end)
	return nil
}

// ownEvent is the beginning of a record of the log about itself.
func (l *Log) ownEvent(operation, reason string) Event {
	return Event{Caller: l.self, Operation: operation, Decision: Allowed, Reason: reason}
}
