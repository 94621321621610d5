// SPDX-License-Identifier: Apache-2.0

// Package audit is the hash-chained log of who asked for what and what was
// decided. It never holds a value.
//
// # What it guarantees
//
//   - Append returns after the record was written to the file: a crash of the
//     agent does not lose it. Sync returns after everything appended before is
//     on the disk: a power cut does not lose that. Records of which nobody
//     awaits a Sync reach the disk within Config.SyncEvery.
//   - An error from Append or AppendAll means that none of the given records is
//     in the log. The operation must fail then. Appending works again as soon
//     as the cause is gone; nothing has to be restarted.
//   - Each record carries HMAC-SHA256(key, MAC of the record before ‖ record).
//     Whoever lacks the key cannot change, insert, remove or reorder records
//     without Verify finding out which.
//   - The end of the log can be cut unseen only after the last head that was
//     kept elsewhere (the anchor, see Head).
//   - A changed log is reported loudly and never stops the agent: it goes on in
//     a new segment whose first record names the break.
//
// # What it does not guarantee
//
//   - Whoever has the key can write any history. An outside witness needs heads
//     that are kept where the agent cannot reach.
//   - While sealed there is no key, and records form a plain hash chain that
//     anybody who can write the files can rewrite. The first record after the
//     unlocking authenticates what is then there.
//   - A crash inside AppendAll may leave the first of its records: nobody was
//     told that they are there, nor that they are not.
//   - Repeats of a denial are counted in memory for up to a second; a crash
//     loses that count, not the first denial.
//
// # Files
//
// A folder (0700) of segments (0600), named by their first record, as in
// audit-00000000000000000001.jsonl. A segment is a header line followed by one
// line per record. Lines are JSON with a fixed order of fields, no spaces, and
// the MAC last; a field that is zero is left out.
//
//	{"format":"keyhole-audit-1","first":1,"previous":"<hex>","unfinished":7,"sealed":true,"mac":"<hex>"}
//	{"index":1,"time":"2026-01-02T03:04:05.000000006Z","sealed":true,"request":"…","operation":"get",
//	 "phase":"intent","batch":"<hex>","spiffe_ids":["spiffe://…"],"source":"x509","pid":1,"uid":2,"gid":3,
//	 "executable":"…","cgroup":4,"path":"db/creds","secret_id":"<hex>","version":5,"revision":6,
//	 "decision":"allowed","deciding_id":"spiffe://…","policy":"…","reason":"…","count":7,"development":true,
//	 "mac":"<hex>"}
//
//	record MAC = HMAC-SHA256(key, MAC of the record before ‖ line up to ,"mac")
//	header MAC = HMAC-SHA256(key, previous ‖ line up to ,"mac")
//
// The MAC before record 1 is 32 zero bytes. Lines with "sealed" use SHA-256 in
// place of HMAC-SHA256 (FIPS 180-4, RFC 2104). "previous" is the MAC of the
// record before "first", so that a segment can be checked on its own.
// "unfinished" is the earliest intent without an outcome when the segment began.
//
// Space for a whole segment is reserved when it begins, without changing the
// length of the file, so that common tools can follow it. Readers skip zero
// bytes at its end, and a last line that a crash left half written.
//
// A file that bears a segment's name where the log is going to go on, and is
// none of its segments, is renamed to end in .rejected. Files that end in .part
// are segments being made. The folder is locked with flock(2) while it is open.
//
// # Faults
//
//   - Disk full: the record that needs a new segment fails; Health tells ahead,
//     because the next segment's space is reserved when three quarters of the
//     current one are used.
//   - A write that fails half way is cut off before the next one.
//   - A failed fdatasync says that the kernel may have dropped what it held and
//     would report success next time. The segment is never written again: what
//     was not yet durable is written once more, from memory, to a new segment
//     that begins after the last durable record. Only when that fails too do
//     Sync and Append fail, until it succeeds. Where a segment holds records
//     that the next one begins with, those of the next one count.
package audit
