// SPDX-License-Identifier: Apache-2.0

package keyholepb

// Wipe clears the bytes of all values, in place: whatever shares them is
// cleared too.
func (x *GetResponse) Wipe() { wipe(x.GetSecret().GetValues()) }

// Wipe clears the bytes of all values, in place: whatever shares them is
// cleared too.
func (x *PutRequest) Wipe() { wipe(x.GetValues()) }

func wipe(values map[string][]byte) {
	for _, value := range values {
		clear(value)
	}
}
