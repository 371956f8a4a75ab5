package discovery

import (
	"encoding/binary"
	"net/netip"
)

// The parts of RFC 1035 messages that the hot path needs.
const (
	headerSize = 12

	typeA    = 1
	typePTR  = 12
	typeAAAA = 28
	typeOPT  = 41
	typeANY  = 255
	classIN  = 1

	rcodeSuccess  = 0
	rcodeFormErr  = 1
	rcodeServFail = 2
	rcodeNXDomain = 3
	rcodeNotImp   = 4
	rcodeRefused  = 5

	flagResponse  = 1 << 15
	flagAuthority = 1 << 10
	flagTruncated = 1 << 9
	flagRecurse   = 1 << 8
	flagRecursive = 1 << 7 // recursion is available
)

// question is what a message asks. name is in lower case, labels joined by dots, without the final one.
type question struct {
	name  []byte
	kind  uint16
	class uint16
	end   int  // of the question in the message
	edns  bool // the message can take answers of up to size
	size  int
}

// parse reads the one question of a query. The name is written to buf.
func parse(m, buf []byte) (q question, ok bool) {
	if len(m) < headerSize || binary.BigEndian.Uint16(m[4:]) != 1 {
		return q, false
	}
	q.name = buf[:0]
	i := headerSize
	for {
		if i >= len(m) {
			return q, false
		}
		n := int(m[i])
		i++
		if n == 0 {
			break
		}
		if n > 63 || i+n > len(m) || len(q.name)+n+1 > 255 { // compression has no place in a question
			return q, false
		}
		if len(q.name) > 0 {
			q.name = append(q.name, '.')
		}
		for _, c := range m[i : i+n] {
			if c == '.' {
				return q, false // a dot inside a label would pass for two labels
			}
			if 'A' <= c && c <= 'Z' {
				c += 'a' - 'A'
			}
			q.name = append(q.name, c)
		}
		i += n
	}
	if i+4 > len(m) {
		return q, false
	}
	q.kind, q.class, q.end = binary.BigEndian.Uint16(m[i:]), binary.BigEndian.Uint16(m[i+2:]), i+4
	q.size = 512
	q.readOptions(m)
	return q, true
}

// readOptions finds an EDNS record that stands alone behind the question, as every resolver sends it.
func (q *question) readOptions(m []byte) {
	o := m[q.end:]
	if binary.BigEndian.Uint16(m[10:]) == 0 || len(o) < 11 || o[0] != 0 || binary.BigEndian.Uint16(o[1:]) != typeOPT {
		return
	}
	q.edns = true
	q.size = min(max(int(binary.BigEndian.Uint16(o[3:])), 512), 1232) // larger datagrams would be fragmented on the way
}

// section is a list of answers to one question, encoded once: the owner is always a pointer to the question's name.
type section struct {
	records []byte
	each    int // bytes of one record; all are the same
}

func addressSection(ttl uint32, addrs []netip.Addr) section {
	var s section
	for _, a := range addrs {
		kind, data := uint16(typeA), a.AsSlice()
		if a.Is6() {
			kind = typeAAAA
		}
		s.each = 12 + len(data)
		s.records = append(s.records, recordHead(kind, ttl, len(data))...)
		s.records = append(s.records, data...)
	}
	return s
}

func recordHead(kind uint16, ttl uint32, size int) []byte {
	b := []byte{0xc0, headerSize, byte(kind >> 8), byte(kind), 0, classIN}
	b = binary.BigEndian.AppendUint32(b, ttl)
	return binary.BigEndian.AppendUint16(b, uint16(size))
}

func (s section) count() int {
	if s.each == 0 {
		return 0
	}
	return len(s.records) / s.each
}

// reply writes a response into out. Records start with a different one each turn, and stop where the client's room ends.
func reply(out, query []byte, q question, s section, rcode int, turn uint32, udp bool) []byte {
	fit := s.count()
	truncated := uint16(0)
	if room := q.size - q.end - 11; udp && len(s.records) > room {
		fit, truncated = max(room, 0)/s.each, flagTruncated
	}
	out = appendHeader(out[:0], query, rcode, truncated, fit, q.edns)
	out = append(out, query[headerSize:q.end]...)
	if fit > 0 {
		first := int(turn%uint32(s.count())) * s.each
		length := fit * s.each
		tail := s.records[first:min(first+length, len(s.records))]
		out = append(out, tail...)
		out = append(out, s.records[:length-len(tail)]...)
	}
	if q.edns {
		out = append(out, 0, 0, typeOPT, 1232>>8, 1232&0xff, 0, 0, 0, 0, 0, 0)
	}
	return out
}

func appendHeader(out, query []byte, rcode int, extra uint16, answers int, edns bool) []byte {
	flags := binary.BigEndian.Uint16(query[2:])&flagRecurse | flagResponse | flagAuthority | flagRecursive | extra | uint16(rcode)
	out = append(out, query[0], query[1])
	out = binary.BigEndian.AppendUint16(out, flags)
	additional := byte(0)
	if edns {
		additional = 1
	}
	return append(out, 0, 1, byte(answers>>8), byte(answers), 0, 0, 0, additional)
}

// failure answers a message that may not even have a readable question.
func failure(query []byte, rcode int) []byte {
	if len(query) < headerSize {
		return nil
	}
	out := make([]byte, headerSize)
	copy(out, query[:2])
	flags := binary.BigEndian.Uint16(query[2:])&(flagRecurse|0x7800) | flagResponse | flagRecursive | uint16(rcode)
	binary.BigEndian.PutUint16(out[2:], flags)
	var buf [256]byte
	if q, ok := parse(query, buf[:]); ok {
		out[5] = 1
		out = append(out, query[headerSize:q.end]...)
	}
	return out
}

// isQuery reports whether a message is a plain question: no response, opcode 0.
func isQuery(m []byte) bool { return binary.BigEndian.Uint16(m[2:])&0xf800 == 0 }
