// SPDX-License-Identifier: Apache-2.0

// Package fusetest holds what tests and benchmarks of the filesystem share: a
// Source of secrets kept in a map, ways of identifying threads that can be held
// up, and a reader.
//
// Nothing in it protects anything. It is the floor that the agent is measured
// from, and a stand-in for what cannot be made to fail on demand.
package fusetest
