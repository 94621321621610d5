// SPDX-License-Identifier: Apache-2.0

package socket

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/keyhole-agent/keyhole/secret"
)

func FuzzFirstBytes(f *testing.F) {
	for _, seed := range []string{"", "\x16", "\x16\x03\x01", "P", "PR", "PRI", "PRI ", "PRI * HTTP/2.0", "PRIX", "GET /", "\x00"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		// However the bytes arrive, the verdict is the same, and nothing is lost.
		for _, from := range []io.Reader{bytes.NewReader(sent), iotest.OneByteReader(bytes.NewReader(sent)), iotest.DataErrReader(bytes.NewReader(sent))} {
			got, head, err := readFirst(from)
			want := spokenOther
			switch {
			case bytes.HasPrefix(sent, []byte{tlsHandshake}):
				want = spokenTLS
			case bytes.HasPrefix(sent, []byte(http2Preface)):
				want = spokenHTTP2
			case strings.HasPrefix(http2Preface, string(sent)):
				want = spokenUnknown
			}
			if got != want || (err != nil) != (want == spokenUnknown) {
				t.Fatalf("%q is %d, want %d: %v", sent, got, want, err)
			}
			if want == spokenUnknown {
				continue
			}
			rest, err := io.ReadAll(from)
			if err != nil || !bytes.Equal(append(head, rest...), sent) {
				t.Fatalf("of %q, %q was looked at and %q is left: %v", sent, head, rest, err)
			}
		}
	})
}

func TestOneUserGetsHalfOfThePlaces(t *testing.T) {
	p := &places{maxPending: 4, maxConnections: 100}
	var taken []*place
	for range 2 {
		one, _ := p.take(1000)
		taken = append(taken, one)
	}
	if one, news := p.take(1000); one != nil || !news {
		t.Errorf("a third place: %v, news %t", one, news)
	}
	if one, news := p.take(1000); one != nil || news {
		t.Errorf("told again: %v, news %t", one, news)
	}
	for range 2 {
		one, _ := p.take(1001)
		taken = append(taken, one)
	}
	if one, _ := p.take(1002); one != nil {
		t.Error("a fifth place of four")
	}
	taken[0].settled()
	if one, _ := p.take(1002); one == nil {
		t.Error("no place after one had settled")
	} else {
		taken = append(taken, one)
	}
	for i, one := range taken {
		one.leave()
		if i != 0 {
			one.settled() // the order does not matter
		}
	}
	if len(p.users) != 0 || p.all != (tally{}) {
		t.Errorf("when all had left: %v %v", p.users, p.all)
	}
}

func TestAHandlerWithoutInterceptorRefuses(t *testing.T) {
	if _, err := callerOf(context.Background()); !errors.Is(err, secret.ErrUnauthenticated) {
		t.Errorf("%v", err)
	}
	if _, err := (secretsService{}).Get(context.Background(), nil); !errors.Is(err, secret.ErrUnauthenticated) {
		t.Errorf("%v", err)
	}
}

func TestPageTokensRoundTrip(t *testing.T) {
	path := secret.MustParsePath("db/creds")
	for _, prefix := range []secret.Path{{}, path.Parent(), path} {
		got, err := decodePageToken(prefix, encodePageToken(path))
		if err != nil || got != path {
			t.Errorf("%q: %v %v", prefix, got, err)
		}
	}
}
