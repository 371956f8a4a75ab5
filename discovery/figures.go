package discovery

import (
	"time"

	"github.com/gantryd/gantry/internal/tally"
)

// Figures is what a name server counts of its work. Every question is one of the first five.
type Figures struct {
	Answered  tally.Counter // a name of ours, even if it has no such record
	NotFound  tally.Counter // nobody's, or not for this asker
	Refused   tally.Counter // who asks may not, or it is no question
	Forwarded tally.Counter // another name server has answered
	Failed    tally.Counter // none did

	Answers  tally.Latency // our own answers
	Forwards tally.Latency // from a question for another name server until there is something to tell
	Waiting  tally.Gauge   // such questions under way
}

// Figures are the server's own; they are live.
func (s *Server) Figures() *Figures { return &s.figures }

// answer counts an answer of ours; a message that got none is no question.
func (f *Figures) answer(begun time.Time, reply []byte) {
	f.Answers.Since(begun)
	switch {
	case reply == nil:
		f.Refused.Add(1)
	case rcodeOf(reply) == rcodeNXDomain:
		f.NotFound.Add(1)
	case rcodeOf(reply) == rcodeSuccess:
		f.Answered.Add(1)
	default:
		f.Refused.Add(1)
	}
}

// forward counts a question for another name server in and gives what counts it out.
func (f *Figures) forward() func(reply []byte) {
	begun := time.Now()
	f.Waiting.Add(1)
	return func(reply []byte) {
		f.Waiting.Add(-1)
		f.Forwards.Since(begun)
		if len(reply) < headerSize || rcodeOf(reply) == rcodeServFail {
			f.Failed.Add(1)
			return
		}
		f.Forwarded.Add(1)
	}
}

// rcodeOf is how a reply says that it went.
func rcodeOf(reply []byte) int { return int(reply[3] & 0x0f) }
