// SPDX-License-Identifier: Apache-2.0

package agent

import "time"

// systemClock is what Options.Now means when it is nil.
func systemClock() time.Time { return time.Now() } // the package's one look at the system's clock
