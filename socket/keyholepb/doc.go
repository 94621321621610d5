// SPDX-License-Identifier: Apache-2.0

// Package keyholepb is the wire interface keyhole.v1: the messages and services
// of keyhole/v1/*.proto, as generated code.
//
// Most Go programs want package client instead, which speaks the words of
// package secret. Messages with values print them: never log one.
package keyholepb
