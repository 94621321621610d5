// SPDX-License-Identifier: Apache-2.0

package socket

import "sync"

// places counts the connections of a socket. One user gets at most half of
// them, so that it cannot lock the others out.
type places struct {
	maxPending, maxConnections int

	mu    sync.Mutex
	all   tally
	users map[uint32]*tally // by uid; no entry without connections
	full  bool              // the last one that asked got no place
}

type tally struct{ pending, connections int }

// place is that of one connection, pending first.
type place struct {
	places *places
	uid    uint32
}

// take returns nil when there is no place, and whether that is news.
func (p *places) take(uid uint32) (taken *place, news bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	user := p.users[uid]
	if user == nil {
		user = &tally{}
	}
	if p.all.connections >= p.maxConnections || p.all.pending >= p.maxPending ||
		user.connections >= max(p.maxConnections/2, 1) || user.pending >= max(p.maxPending/2, 1) {
		news = !p.full
		p.full = true
		return nil, news
	}
	p.full = false
	if p.users == nil {
		p.users = map[uint32]*tally{}
	}
	p.users[uid] = user
	for _, t := range []*tally{&p.all, user} {
		t.pending++
		t.connections++
	}
	return &place{places: p, uid: uid}, false
}

// settled says that the connection is pending no longer. Called once.
func (p *place) settled() { p.change(1, 0) }

// leave gives the place up. Called once.
func (p *place) leave() { p.change(0, 1) }

func (p *place) change(pending, connections int) {
	all := p.places
	all.mu.Lock()
	defer all.mu.Unlock()
	user := all.users[p.uid]
	for _, t := range []*tally{&all.all, user} {
		t.pending -= pending
		t.connections -= connections
	}
	if *user == (tally{}) {
		delete(all.users, p.uid)
	}
}
