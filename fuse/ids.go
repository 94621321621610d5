// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
)

// ids derives the names of views and the numbers of inodes from what they stand
// for, with a key of this run: nobody can guess a view's name, and an inode
// number tells nothing about the secret behind it.
type ids struct{ key [32]byte }

func newIDs() ids {
	var i ids
	_, _ = rand.Read(i.key[:]) // never fails, by its documentation
	return i
}

// viewName returns 128 bits in lower-case hexadecimal.
func (i *ids) viewName(key viewKey) string {
	message := appendText([]byte("view\x00"), key.ids)
	message = binary.BigEndian.AppendUint32(message, key.uid)
	message = binary.BigEndian.AppendUint32(message, key.gid)
	sum := i.sum(message)
	return hex.EncodeToString(sum[:16])
}

// node returns 64 bits for what is known as current; salt tells colliding ones
// apart.
func (i *ids) node(what identifier, salt uint64) uint64 {
	message := append([]byte("current\x00"), byte(what.kind))
	message = appendText(message, what.view)
	message = appendText(message, what.path.String())
	message = append(message, what.secret[:]...)
	message = appendText(message, what.key.String())
	message = binary.BigEndian.AppendUint64(message, uint64(what.version))
	message = binary.BigEndian.AppendUint64(message, salt)
	sum := i.sum(message)
	return binary.BigEndian.Uint64(sum[:8])
}

func (i *ids) sum(message []byte) []byte {
	mac := hmac.New(sha256.New, i.key[:])
	_, _ = mac.Write(message) // never fails, by hash.Hash
	return mac.Sum(nil)
}

// appendText appends text behind its length, so that no two messages are equal
// by accident of concatenation.
func appendText(message []byte, text string) []byte {
	message = binary.AppendUvarint(message, uint64(len(text)))
	return append(message, text...)
}
