// SPDX-License-Identifier: Apache-2.0

package vault

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"

	"github.com/keyhole-agent/keyhole/agent/seal"
	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/secret"
)

// The bodies of the stored records. What is in clear says only how to open the
// rest, and opening proves it.
//
//	secrets:  format=1 | kind=1 secret | id, 16 bytes | wrapped key | head's length, 4 bytes | sealed head | sealed history
//	          format=1 | kind=2 folder | id, 16 bytes | wrapped key | sealed path
//	versions: format=1 | wrapped key
//	payloads: sealed values, by the version's key
//	policies: format=1 | wrapped key | sealed policy
//
// A record in "secrets" has the located path as its ID and the located folder
// as its parent; a version and its payload have the secret's ID and the version
// number, and the secret's ID as their parent.
const (
	bodyFormat = 1
	bodySecret = 1
	bodyFolder = 2

	idStart     = 2
	wrapStart   = idStart + len(secret.ID{})
	sealedStart = wrapStart + seal.WrappedSize
)

func (v *Vault) pathKey(p secret.Path) backend.Key {
	id := v.keys.Locate(p)
	return backend.Key{Table: backend.Secrets, ID: string(id[:])}
}

// versionID is the ID of a version's records.
func versionID(id secret.ID, version secret.Version) string {
	return string(binary.BigEndian.AppendUint64(id[:], uint64(version)))
}

func versionKey(id secret.ID, version secret.Version) backend.Key {
	return backend.Key{Table: backend.Versions, ID: versionID(id, version)}
}

func payloadKey(id secret.ID, version secret.Version) backend.Key {
	return backend.Key{Table: backend.Payloads, ID: versionID(id, version)}
}

// bound is the binding of a record that lies where its key says.
func bound(kind seal.Kind, key backend.Key, id secret.ID) seal.Binding {
	b := seal.Binding{Kind: kind, ID: id}
	copy(b.Lookup[:], key.ID)
	return b
}

func newID() (id secret.ID) {
	_, _ = rand.Read(id[:]) // never fails
	return id
}

// sealSecret makes the record of s.
func (v *Vault) sealSecret(s *state) (backend.Record, error) {
	record := backend.Record{Key: v.pathKey(s.path)}
	binding := bound(seal.KindSecret, record.Key, s.id)
	key, wrapped, err := v.keys.NewDataKey(binding)
	if err != nil {
		return backend.Record{}, err
	}
	defer key.Wipe()
	head, err := key.Seal(binding, seal.FieldHead, s.encodeHead())
	if err != nil {
		return backend.Record{}, err
	}
	history, err := key.Seal(binding, seal.FieldHistory, s.encodeHistory())
	if err != nil {
		return backend.Record{}, err
	}
	body := append([]byte{bodyFormat, bodySecret}, s.id[:]...)
	body = append(body, wrapped...)
	body = binary.BigEndian.AppendUint32(body, uint32(len(head)))
	body = append(append(body, head...), history...)
	if len(body) > backend.MaxBodyBytes {
		return backend.Record{}, fmt.Errorf("%w: %q has %d versions, which do not fit into one record; destroy old ones", secret.ErrTooLarge, s.path, len(s.history))
	}
	record.Body = body
	record.Hints.Parent = v.pathKey(s.path.Parent()).ID
	record.Hints.Term = v.keys.Term()
	if s.live.Version == 0 {
		record.Hints.Empty = s.emptyAt.Unix()
	}
	return record, nil
}

// sealFolder makes the record of a folder.
func (v *Vault) sealFolder(p secret.Path) (backend.Record, error) {
	id := newID()
	record := backend.Record{Key: v.pathKey(p)}
	binding := bound(seal.KindFolder, record.Key, id)
	key, wrapped, err := v.keys.NewDataKey(binding)
	if err != nil {
		return backend.Record{}, err
	}
	defer key.Wipe()
	name, err := key.Seal(binding, seal.FieldHead, []byte(p.String()))
	if err != nil {
		return backend.Record{}, err
	}
	body := append([]byte{bodyFormat, bodyFolder}, id[:]...)
	record.Body = append(append(body, wrapped...), name...)
	record.Hints.Parent = v.pathKey(p.Parent()).ID
	record.Hints.Term = v.keys.Term()
	return record, nil
}

// isFolder tells a record of "secrets" apart without opening it.
func isFolder(r backend.Record) bool { return len(r.Body) > 1 && r.Body[1] == bodyFolder }

// openSecret opens the record of a secret, that of the given path unless it is
// the root. A record that was moved to another path's key does not open.
func (v *Vault) openSecret(path secret.Path, r backend.Record, withHistory bool) (*state, error) {
	s, err := v.openSecretParts(r, withHistory)
	if err != nil {
		return nil, err
	}
	if !path.IsRoot() && s.path != path {
		return nil, fmt.Errorf("the record says that it is another secret's: %w", secret.ErrTampered)
	}
	return s, nil
}

func (v *Vault) openSecretParts(r backend.Record, withHistory bool) (*state, error) {
	if err := checkBody(r.Body, bodySecret); err != nil {
		return nil, err
	}
	var id secret.ID
	copy(id[:], r.Body[idStart:])
	binding := bound(seal.KindSecret, r.Key, id)
	key, err := v.keys.OpenDataKey(binding, r.Body[wrapStart:sealedStart])
	if err != nil {
		return nil, fmt.Errorf("opening the key of a secret: %w", err)
	}
	defer key.Wipe()
	rest := r.Body[sealedStart:]
	if len(rest) < 4 || uint64(binary.BigEndian.Uint32(rest)) > uint64(len(rest)-4) {
		return nil, fmt.Errorf("reading the record of a secret: it is cut: %w", secret.ErrTampered)
	}
	split := 4 + int(binary.BigEndian.Uint32(rest))
	head, err := key.Open(binding, seal.FieldHead, rest[4:split])
	if err != nil {
		return nil, fmt.Errorf("opening the head of a secret: %w", err)
	}
	s, err := decodeHead(head, id)
	if err != nil || !withHistory {
		return s, err
	}
	history, err := key.Open(binding, seal.FieldHistory, rest[split:])
	if err != nil {
		return nil, fmt.Errorf("opening the history of a secret: %w", err)
	}
	return s, s.decodeHistory(history)
}

// openFolder returns the path of a folder's record, having proven it.
func (v *Vault) openFolder(r backend.Record) (secret.Path, error) {
	if err := checkBody(r.Body, bodyFolder); err != nil {
		return secret.Path{}, err
	}
	var id secret.ID
	copy(id[:], r.Body[idStart:])
	binding := bound(seal.KindFolder, r.Key, id)
	key, err := v.keys.OpenDataKey(binding, r.Body[wrapStart:sealedStart])
	if err != nil {
		return secret.Path{}, fmt.Errorf("opening the key of a folder: %w", err)
	}
	defer key.Wipe()
	name, err := key.Open(binding, seal.FieldHead, r.Body[sealedStart:])
	if err != nil {
		return secret.Path{}, fmt.Errorf("opening a folder: %w", err)
	}
	path, err := secret.ParsePath(string(name))
	if err != nil {
		return secret.Path{}, fmt.Errorf("opening a folder: %w: %w", secret.ErrTampered, err)
	}
	return path, nil
}

func checkBody(body []byte, kind byte) error {
	switch {
	case len(body) > 0 && body[0] > bodyFormat:
		return fmt.Errorf("reading a record of format %d: %w", body[0], secret.ErrNewerFormat)
	case len(body) < sealedStart || body[0] != bodyFormat || body[1] != kind:
		return fmt.Errorf("reading a record: it is not what belongs there: %w", secret.ErrTampered)
	}
	return nil
}

// sealVersion makes the two records of a version.
func (v *Vault) sealVersion(id secret.ID, version secret.Version, values secret.Values) (key, payload backend.Record, err error) {
	binding := seal.Binding{Kind: seal.KindVersion, ID: id, Version: version}
	dataKey, wrapped, err := v.keys.NewDataKey(binding)
	if err != nil {
		return key, payload, err
	}
	defer dataKey.Wipe()
	plain := values.AppendEncoded(make([]byte, 0, values.EncodedSize()))
	defer clear(plain)
	sealed, err := dataKey.Seal(binding, seal.FieldPayload, plain)
	if err != nil {
		return key, payload, err
	}
	hints := backend.Hints{Parent: string(id[:])}
	payload = backend.Record{Key: payloadKey(id, version), Hints: hints, Body: sealed}
	hints.Term = v.keys.Term()
	key = backend.Record{Key: versionKey(id, version), Hints: hints, Body: append([]byte{bodyFormat}, wrapped...)}
	return key, payload, nil
}

// openVersion opens the values of a version from its two records.
func (v *Vault) openVersion(id secret.ID, version secret.Version, key, payload backend.Record) (secret.Values, error) {
	if len(key.Body) != 1+seal.WrappedSize || key.Body[0] != bodyFormat || payload.Rev == 0 {
		return secret.Values{}, fmt.Errorf("reading version %d: its record is missing or cut: %w", version, secret.ErrTampered)
	}
	binding := seal.Binding{Kind: seal.KindVersion, ID: id, Version: version}
	dataKey, err := v.keys.OpenDataKey(binding, key.Body[1:])
	if err != nil {
		return secret.Values{}, fmt.Errorf("opening the key of version %d: %w", version, err)
	}
	defer dataKey.Wipe()
	plain, err := dataKey.Open(binding, seal.FieldPayload, payload.Body)
	if err != nil {
		return secret.Values{}, fmt.Errorf("opening version %d: %w", version, err)
	}
	values, err := secret.DecodeValues(plain)
	if err != nil {
		clear(plain)
		return secret.Values{}, fmt.Errorf("opening version %d: %w", version, err)
	}
	return values, nil
}
