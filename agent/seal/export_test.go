// SPDX-License-Identifier: Apache-2.0

package seal

// CheapPassword is a password whose new slots cost next to nothing, for tests
// that are not about the cost.
func CheapPassword(text string) Password {
	bytes := []byte(text)
	return Password{p: &password{text: &bytes, cost: argonCost{passes: 1, memory: 32, threads: 1}}}
}
