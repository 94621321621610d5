// SPDX-License-Identifier: Apache-2.0

package fuse

// ReplyMemory is the memory that replies with secret bytes are made in.
func (fs *FS) ReplyMemory() []byte { return fs.device.bulk.arena }
