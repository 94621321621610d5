// SPDX-License-Identifier: Apache-2.0

package vault

// DestroyStep is how many versions a purge destroys in one batch.
const DestroyStep = destroyStep
