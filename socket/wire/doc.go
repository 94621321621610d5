// SPDX-License-Identifier: Apache-2.0

// Package wire is what the server in package socket and package client must
// agree on: the reasons of errors, the names of headers, how messages are
// encoded, and how they translate to the words of packages secret and policy.
//
// # What becomes of values
//
// The bytes of a secret pass through buffers on their way. Those that this
// package hands to gRPC come from a Pool, which clears them when they come
// back; messages with values are cleared by their owner with Wipe. It cannot
// reach the rest: gRPC keeps a frame of up to 1 KiB that it received, and its
// own read and write buffers of 32 KiB, as they are until they are used again
// or collected; crypto/tls and the kernel have buffers of their own. Whoever can
// read the memory of the process can find values there for a while.
package wire
