// Command echo answers each datagram to the port of its argument with "got " before it.
package main

import (
	"log"
	"net"
	"os"
)

func main() {
	conn, err := net.ListenPacket("udp", ":"+os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	buf := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err == nil {
			_, err = conn.WriteTo(append([]byte("got "), buf[:n]...), from)
		}
		if err != nil {
			log.Fatal(err)
		}
	}
}
