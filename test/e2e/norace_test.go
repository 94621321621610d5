// SPDX-License-Identifier: Apache-2.0

//go:build !race

package e2e

// raceEnabled says whether the binary under test looks for data races, as this
// one does.
const raceEnabled = false
