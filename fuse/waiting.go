// SPDX-License-Identifier: Apache-2.0

package fuse

import "sync"

// waiting counts the callers that are being identified, by user, so that one
// user's many unknown processes do not take all the places.
type waiting struct {
	limit int // of one user

	mu    sync.Mutex
	users map[uint32]int
}

func newWaiting(limit int) waiting { return waiting{limit: limit, users: map[uint32]int{}} }

// enter reports whether there is a place for the user; if so, leave gives it back.
func (w *waiting) enter(uid uint32) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.users[uid] >= w.limit {
		return false
	}
	w.users[uid]++
	return true
}

func (w *waiting) leave(uid uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.users[uid]--; w.users[uid] == 0 {
		delete(w.users, uid)
	}
}
