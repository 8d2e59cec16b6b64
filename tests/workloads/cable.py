"""The kinds of traffic between the host and the peer: what crosses a cable has a second witness."""

from __future__ import annotations

import socket
import time

from tests.workloads import scene
from tests.workloads.datagrams import GROUP, fragmented
from tests.workloads.inject import inject
from tests.workloads.scene import (
    DISCARD,
    HOST,
    INNER,
    PEER,
    Child,
    Moved,
    Note,
    Send,
    Truth,
    Way,
    connected,
    connection,
    datagrams,
    down,
    dwelling,
    exchange,
    give,
    kernels,
    listener,
    moved,
    on_wire,
    prepared,
    receive,
    send_connected,
    send_each,
    take,
    take_blindly,
    take_each,
    tcp_moved,
    together,
    udp,
    up,
)
from tests.workloads.streams import ring, send_file, spliced

# -- TCP --------------------------------------------------------------------------------------


def tcp_up() -> Truth:
    return connection(take(1_000_003), give(1_000_003), up("cable4"))


def tcp_down() -> Truth:
    return connection(take(1_000_033), give(1_000_033), down("cable4"))


def tcp_duplex() -> Truth:
    """Up and down at the same time, by a client and by a server."""
    return both_exchange("cable4", 300_007, 500_009)


def tcp_v6() -> Truth:
    return both_exchange("cable6", 200_003, 150_001)


def both_exchange(name: str, one: int, other: int) -> Truth:
    truth = connection(exchange(one, other), exchange(other, one), up(name))
    return truth + connection(exchange(other, one), exchange(one, other), down(name))


def tcp_v4_mapped() -> Truth:
    """An IPv6 socket that serves IPv4."""
    served = down("cable4")._replace(bound_address="::")
    return connection(exchange(10_007, 20_011), exchange(20_011, 10_007), served)


def sendfile() -> Truth:
    return connection(send_file(500_009), take(500_009), down("cable4"))


def splice() -> Truth:
    return spliced(200_017, down("cable4"))


def io_uring_send() -> Truth:
    _, send = ring(0, 0)
    return connection(take(3001), send, up("cable4"))


def io_uring_receive() -> Truth:
    receive_all, _ = ring(0, 0)
    return connection(receive_all, give(3001), down("cable4"))


def slow_drip() -> Truth:
    """A few bytes every 20 ms."""
    number, size = 31, 17

    def drip(sock: socket.socket) -> Moved:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(number):
            sock.sendall(bytes(size))
            time.sleep(0.02)
        return tcp_moved(sock, number * size)

    return connection(take(number * size), drip, up("cable4"))


def many_small_connections() -> Truth:
    """307 of them, one after the other, by one process."""
    sizes = range(101, 101 + 307)
    where = Note()

    def server() -> Truth:
        with listener(scene.world.addresses["cable4"][PEER]) as listening:
            where.give(listening.getsockname())
            for size in sizes:
                with listening.accept()[0] as sock:
                    assert receive(sock, size) == size
                    sock.sendall(bytes(11))
        return []

    def client() -> Truth:
        truth, target = [], where.take()
        for size in sizes:
            with connected(target) as sock:
                sock.sendall(bytes(size))
                truth.append(tcp_moved(sock, size, receive(sock, 11)))
        return dwelling(truth)

    return together(Child(server, PEER), Child(client))


def parallel_burst() -> Truth:
    """Eight processes send as fast as they can, at the same time."""
    sizes = [100_003 + 1_009 * number for number in range(8)]
    where, go = Note(), Note()

    def server() -> Truth:
        with listener(scene.world.addresses["cable4"][PEER]) as listening:
            for _ in sizes:
                where.give(listening.getsockname())
            served = [Child(lambda: serve(listening)) for _ in sizes]
            return together(*served)

    def serve(listening: socket.socket) -> Truth:
        with listening.accept()[0] as sock:
            receive(sock, 1 << 30)
            return []

    def client(size: int) -> Truth:
        with connected(where.take()) as sock:
            go.take()
            return dwelling([give(size)(sock)])

    servers = Child(server, PEER)
    clients = [Child(lambda size=size: client(size)) for size in sizes]
    for _ in sizes:
        go.give()
    return together(*clients, servers)


def refused() -> Truth:
    """A port where nobody listens, at the peer and at the host: kernels answer."""
    return refused_by(up("cable4")) + refused_by(down("cable4"))


def refused_by(by: Way) -> Truth:
    def client() -> Truth:
        sock = prepared(socket.socket(), by.client_address)
        here, there = sock.getsockname(), (by.server_address, DISCARD)
        try:
            sock.connect(there)
        except ConnectionRefusedError:
            answerer = {**kernels("tcp", there, here), "place": by.server}
            return [moved("tcp", here, there), answerer]
        raise AssertionError("somebody listens there")

    return Child(client, by.client).truth()


# -- UDP --------------------------------------------------------------------------------------


def udp_up() -> Truth:
    return datagrams(send_connected(*[1009] * 101), take_blindly(101), up("cable4"), connect=True)


def udp_down() -> Truth:
    return datagrams(send_each(*[1013] * 101), take_each(101), down("cable4"))


def udp_answered() -> Truth:
    """Questions and answers, on one socket of a client and of a server."""
    return answered("cable4")


def udp_v6() -> Truth:
    return answered("cable6")


def answered(name: str) -> Truth:
    return ask(up(name), 211, 401) + ask(down(name), 223, 409)


def ask(by: Way, question: int, answer: int, number: int = 23) -> Truth:
    at = Note()

    def server() -> Truth:
        with udp(by.server_address) as sock:
            at.give(sock.getsockname()[:2])
            for _ in range(number):
                data, sender = sock.recvfrom(65535)
                assert len(data) == question
                sock.sendto(bytes(answer), sender)
            moved_all = moved("udp", sock.getsockname(), sender, number * answer, number * question)
            return dwelling([moved_all])

    def client() -> Truth:
        target = at.take()
        with udp(by.client_address) as sock:
            for _ in range(number):
                sock.sendto(bytes(question), target)
                assert len(sock.recv(65535)) == answer
            moved_all = moved("udp", sock.getsockname(), target, number * question, number * answer)
            return dwelling([moved_all])

    return together(Child(server, by.server), Child(client, by.client))


def sendmmsg() -> Truth:
    return datagrams(send_many(11), take_each(11), up("cable4"), connect=True)


def recvmmsg() -> Truth:
    def receive_many(sock: socket.socket) -> int:
        return int(scene.calls.receive_many(sock.fileno(), 13))

    return datagrams(send_many(13), receive_many, down("cable4"), connect=True)


def send_many(number: int, size: int = 307) -> Send:
    """Datagrams of ``size`` bytes and more, in one call."""

    def send(sock: socket.socket, _: object) -> int:
        assert scene.calls.send_many(sock.fileno(), number, size) == number
        return sum(range(size, size + number))

    return send


def small_packet_flood() -> Truth:
    """20 032 datagrams of 7 to 70 bytes, without a pause."""
    return datagrams(send_flood, take_nothing, up("cable4"), connect=True)


def send_flood(sock: socket.socket, _: object) -> int:
    send = send_many(64, 7)
    sent = sum(send(sock, None) for _ in range(313))
    sock.send(b"")
    return sent


def take_nothing(sock: socket.socket) -> int:
    """Until it is over. What finds no room is counted on the cable all the same."""
    while sock.recv(65535):
        pass
    return 0


def fragments() -> Truth:
    """60 kB in a datagram, up and down."""
    truth = datagrams(send_each(60_029), take_each(1), up("cable4"))
    truth += datagrams(send_each(60_037), take_each(1), down("cable4"))
    return [fragmented(entry, 20) for entry in truth]


def multicast() -> Truth:
    """To a group, and of a group."""
    return to_group(up("cable4"), 587) + to_group(down("cable4"), 593)


def to_group(by: Way, size: int) -> Truth:
    at = Note()

    def member() -> Truth:
        with prepared(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), GROUP) as sock:
            group = socket.inet_aton(GROUP) + socket.inet_aton(by.server_address)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
            at.give(sock.getsockname())
            data, sender = sock.recvfrom(65535)
            return dwelling([moved("udp", sock.getsockname(), sender, received=len(data))])

    def send() -> Truth:
        target = at.take()
        with udp(by.client_address) as sock:
            interface = socket.inet_aton(by.client_address)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
            sent = sock.sendto(bytes(size), target)
            return dwelling([moved("udp", sock.getsockname(), target, sent)])

    return together(Child(member, by.server), Child(send, by.client))


def unreachable() -> Truth:
    """A port that nobody has, at the peer and at the host: kernels answer in ICMP."""
    (sender, error), (asked, answer) = unreachable_at(up("cable4")), unreachable_at(down("cable4"))
    both = {**error, **{key: answer[key] for key in ("sent",)}}
    return [sender, asked, on_wire(both, answer["wire"][0], error["wire"][1])]


def unreachable_at(by: Way) -> tuple[Moved, Moved]:
    """What the host moved, and what its kernel did."""
    size = 211 if by.client == HOST else 223

    def send() -> Truth:
        with udp(by.client_address) as sock:
            here, there = sock.getsockname(), (by.server_address, DISCARD)
            sock.connect(there)
            sock.send(bytes(size))
            try:
                sock.recv(1)
            except ConnectionRefusedError:
                pass
            else:
                raise AssertionError("somebody took it")
            answer = 20 + 8 + size
            host, other = (
                scene.world.addresses["cable4"][HOST],
                scene.world.addresses["cable4"][PEER],
            )
            if by.client == HOST:
                error = kernels("icmp", (host, 0), (other, 0), 0, answer)
                return [moved("udp", here, there, size), on_wire(error, 0, 28 + answer)]
            asked = kernels("udp", there, here, 0, size)
            error = on_wire(kernels("icmp", (host, 0), (other, 0), answer), 28 + answer, 0)
            return [{**asked, "place": HOST}, {**error, "place": HOST}]

    first, second = Child(send, by.client).truth()
    return first, second


# -- other ways -------------------------------------------------------------------------------


def injected() -> Truth:
    """Frames of an AF_PACKET socket, with five-tuples that no socket has."""
    addresses = scene.world.addresses
    ends = [(addresses[name][HOST], addresses[name][PEER]) for name in ("cable4", "cable6")]
    return Child(lambda: inject(scene.world.device, scene.world.mac, ends)).truth()


def vlan() -> Truth:
    """By a cable on which each frame has a tag."""
    return both_exchange("tag", 50_021, 70_001) + answered("tag")


def tun() -> Truth:
    """By a device that has no link header."""
    return both_exchange("tun", 40_009, 60_013) + answered("tun")


def masqueraded() -> Truth:
    """From a namespace whose address the host takes for its own: the process inside moved it."""
    inside = scene.addresses_of("inner")[INNER]
    by = up("cable4")._replace(client=INNER, client_address=inside)
    truth = connection(exchange(70_003, 50_023), exchange(50_023, 70_003), by)
    return as_seen_outside(truth + ask(by, 227, 419))


def as_seen_outside(truth: Truth) -> Truth:
    """The peer's word for the addresses of the process inside."""
    outside = {tuple(each["local"]): each["remote"] for each in truth if each["place"] == PEER}
    return [
        {**each, "place": HOST, "local": outside[tuple(each["remote"])], "inside": each["local"]}
        for each in truth
        if each["place"] == INNER
    ]


def same_tuple() -> Truth:
    """The same five-tuples, at the same time, in two namespaces."""
    return together(Child(fixed_ports), Child(fixed_ports, INNER))


def fixed_ports() -> Truth:
    def sink() -> Truth:
        with udp(port=20_011) as sock:
            ready.give()
            received = take_each(11)(sock)
            return [moved("udp", sock.getsockname(), (scene.V4, 20_021), received=received)]

    def sender() -> Truth:
        with udp(port=20_021) as sock:
            ready.take()
            for _ in range(11):
                sock.sendto(bytes(223), (scene.V4, 20_011))
                time.sleep(0.02)
            return [moved("udp", sock.getsockname(), (scene.V4, 20_011), 11 * 223)]

    def server() -> Truth:
        with listener(port=20_023) as listening:
            ready.give()
            with listening.accept()[0] as sock:
                return [tcp_moved(sock, received=receive(sock, 5003))]

    def client() -> Truth:
        ready.take()
        with connected((scene.V4, 20_023), 20_029) as sock:
            for size in (2003, 3000):
                sock.sendall(bytes(size))
                time.sleep(0.02)
            return [tcp_moved(sock, 5003)]

    truth: Truth = []
    for takes, gives in ((sink, sender), (server, client)):
        ready = Note()
        taker = Child(takes)
        truth += together(Child(gives), taker)
    return truth


KINDS = (
    tcp_up,
    tcp_down,
    tcp_duplex,
    tcp_v6,
    tcp_v4_mapped,
    sendfile,
    splice,
    io_uring_send,
    io_uring_receive,
    slow_drip,
    many_small_connections,
    parallel_burst,
    refused,
    udp_up,
    udp_down,
    udp_answered,
    udp_v6,
    sendmmsg,
    recvmmsg,
    small_packet_flood,
    fragments,
    multicast,
    unreachable,
    injected,
    vlan,
    tun,
    masqueraded,
    same_tuple,
)
