package main

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
)

// brokerOf asks the name server for the broker: the admin client wants its address, and has no call to find it.
func brokerOf(server string) string {
	conn, err := net.Dial("tcp", server)
	must(err, "name server")
	defer conn.Close()
	header := []byte(`{"code":106,"language":"GO","version":317,"opaque":1,"flag":0,"extFields":{}}`)
	frame := binary.BigEndian.AppendUint32(nil, uint32(4+len(header)))
	frame = binary.BigEndian.AppendUint32(frame, uint32(len(header)))
	_, err = conn.Write(append(frame, header...))
	must(err, "name server")
	var lengths [8]byte
	_, err = io.ReadFull(conn, lengths[:])
	must(err, "name server")
	head := int(binary.BigEndian.Uint32(lengths[4:]) & 0xffffff)
	rest := make([]byte, int(binary.BigEndian.Uint32(lengths[:4]))-4)
	_, err = io.ReadFull(conn, rest)
	must(err, "name server")
	var info struct {
		BrokerAddrTable map[string]struct{ BrokerAddrs map[string]string }
	}
	must(json.Unmarshal(standard(rest[head:]), &info), "cluster information")
	for _, broker := range info.BrokerAddrTable {
		for _, address := range broker.BrokerAddrs {
			return address
		}
	}
	panic(failure("the name server knows no broker"))
}

// standard puts quotes around the numbers that Apache's name server writes as keys.
func standard(body []byte) []byte {
	out := []byte{}
	for i, b := range body {
		number := b >= '0' && b <= '9'
		if number && i > 0 && (body[i-1] == '{' || body[i-1] == ',') && i+1 < len(body) && body[i+1] == ':' {
			out = append(out, '"', b, '"')
		} else {
			out = append(out, b)
		}
	}
	return out
}
