// SPDX-License-Identifier: Apache-2.0

package audit

import "time"

// systemClock is what Config.Now means when it is nil.
func systemClock() time.Time { return time.Now() } // the package's one look at the system's clock
