package expose

import "time"

// SetDrain shortens the time that a client has for its last replies, which no test can wait for.
func SetDrain(s *NBDServer, d time.Duration) { s.drain = d }
