package network

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// tableOwner is NFT_TABLE_F_OWNER, which x/sys does not name: the table belongs to the socket that made it. Nobody else can change it, a flush of all
// rules passes it over, and the kernel removes it with the socket. Linux has it since 5.12.
const tableOwner = 0x2

// hostFilter are the host's own rules, for the slots of all processes alike. Each process that has slots has a table of its own with them.
type hostFilter struct{ conn *nftables.Conn }

// installHostFilter hides slots behind the host's addresses, and keeps them from the host, from each other, and from being reached.
func installHostFilter(subnet netip.Prefix) (*hostFilter, error) {
	id := make([]byte, 8)
	if _, err := rand.Read(id); err != nil {
		return nil, err
	}
	return hostTable(LinkPrefix+hex.EncodeToString(id), subnet)
}

func hostTable(name string, subnet netip.Prefix) (*hostFilter, error) {
	var socket *netlink.Conn
	keep := func(c *netlink.Conn) error { socket = c; return nil }
	c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(answersSoon, keep))
	if err != nil {
		return nil, fmt.Errorf("opening the packet filter: %w", err)
	}
	f := &hostFilter{conn: c}
	if err := addOwnedTable(socket, name); err != nil {
		return nil, errors.Join(fmt.Errorf("adding a table of packet filter rules: %w", explainFilter(err)), f.remove())
	}
	t := &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
	refuseChain(c, t)
	slots := []byte(LinkPrefix)
	fromSlot, toSlot := from(expr.CmpOpEq, slots), to(expr.CmpOpEq, slots)
	rules := [][]expr.Any{
		rule(fromSlot, family(expr.CmpOpNeq, unix.NFPROTO_IPV4), drop),
		rule(fromSlot, toSlot, drop),
	}
	for _, p := range Blocked() {
		rules = append(rules, rule(fromSlot, addressIn(destinationAt, expr.CmpOpEq, p), drop)) // the slot has refused it already
	}
	chain(c, t, "forward", nftables.ChainHookForward, nftables.ChainPolicyAccept, append(rules,
		rule(toSlot, state(known), accept),
		rule(toSlot, drop),
	)...)
	chain(c, t, "input", nftables.ChainHookInput, nftables.ChainPolicyAccept,
		rule(fromSlot, state(known), accept),
		rule(fromSlot, family(expr.CmpOpNeq, unix.NFPROTO_IPV4), drop),
		rule(fromSlot, refuse),
	)
	chain(c, t, "hide", nftables.ChainHookPostrouting, nftables.ChainPolicyAccept,
		rule(addressIn(sourceAt, expr.CmpOpEq, subnet), to(expr.CmpOpNeq, slots), hide),
	)
	if err := c.Flush(); err != nil {
		return nil, errors.Join(fmt.Errorf("installing the host's packet filter: %w", explainFilter(err)), f.remove())
	}
	return f, nil
}

// remove takes the rules away: they go with the socket.
func (f *hostFilter) remove() error {
	if err := f.conn.CloseLasting(); err != nil {
		return fmt.Errorf("removing the host's packet filter: %w", err)
	}
	return nil
}

// addOwnedTable makes a table that belongs to the socket. The library can't, since it sends no flags.
func addOwnedTable(socket *netlink.Conn, name string) error {
	const subsystem = unix.NFNL_SUBSYS_NFTABLES
	body, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(name), 0)},
		{Type: unix.NFTA_TABLE_FLAGS, Data: []byte{0, 0, 0, tableOwner}},
	})
	if err != nil {
		return err
	}
	message := func(kind netlink.HeaderType, flags netlink.HeaderFlags, family byte, id byte, body []byte) netlink.Message {
		header := []byte{family, unix.NFNETLINK_V0, 0, id} // struct nfgenmsg
		return netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request | flags}, Data: append(header, body...)}
	}
	_, err = socket.SendMessages([]netlink.Message{
		message(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, subsystem, nil),
		message(subsystem<<8|unix.NFT_MSG_NEWTABLE, netlink.Acknowledge|netlink.Create|netlink.Excl, unix.NFPROTO_INET, 0, body),
		message(unix.NFNL_MSG_BATCH_END, 0, 0, subsystem, nil),
	})
	if err != nil {
		return err
	}
	_, err = socket.Receive()
	return err
}

// explainFilter adds to an error of the packet filter what the user can do about it.
func explainFilter(err error) error {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, fs.ErrNotExist):
		return unable("use Linux 5.12 or later with nftables: sudo modprobe -a nf_tables nft_masq nft_reject_inet nft_ct", "%w", err)
	case errors.Is(err, fs.ErrPermission):
		return unable(privilegeHint, "%w", err)
	}
	return err
}
