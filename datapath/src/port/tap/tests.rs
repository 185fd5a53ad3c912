//! The port over a pair of datagram sockets, which move whole packets as a TAP does.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use culvert_gso::checksum;
use culvert_gso::vnet::{Checksum, Gso, Kind, Tunnel};

use super::*;
use crate::frame::CHUNK;

const LENGTHS: Lengths = Lengths {
    most: 1522,
    fits: 1460,
};

/// Headers: Ethernet, IPv4, UDP and Geneve outside; Ethernet, IPv4 and TCP inside.
const OUTER_IP: usize = 14;
const OUTER_UDP: usize = OUTER_IP + 20;
const INNER: usize = OUTER_UDP + 8 + 8;
const INNER_IP: usize = INNER + 14;
const INNER_TCP: usize = INNER_IP + 20;
const PAYLOAD: usize = INNER_TCP + 20;

/// A stack and the port that it has.
fn pair() -> (UnixDatagram, TapPort, Pool) {
    let (stack, queue) = UnixDatagram::pair().unwrap();
    for end in [&stack, &queue] {
        end.set_nonblocking(true).unwrap();
    }
    let port = TapPort::new(OwnedFd::from(queue).into(), Layout::Tunnel, LENGTHS);
    (stack, port, Pool::on_heap(64, CHUNK))
}

fn set(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at..at + 2].copy_from_slice(&u16::try_from(value).unwrap().to_be_bytes());
}

/// Completes the checksum of the IPv4 header at `at`, and returns the sum of the pseudo header of what is behind it.
fn ip(bytes: &mut [u8], at: usize, protocol: u8, flags: u8) -> u64 {
    let length = bytes.len() - at;
    let header = &mut bytes[at..at + 20];
    header[0] = 0x45;
    set(header, 2, length);
    header[6] = flags;
    header[8..10].copy_from_slice(&[64, protocol]);
    header[12..20].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
    let sum = checksum::finish(checksum::sum(header));
    set(header, 10, usize::from(sum));
    checksum::sum(&header[12..20]) + u64::from(protocol) + length as u64 - 20
}

/// A TCP segment in Geneve from `sequence` on; its checksum complete, or to be completed.
fn tcp(payload: usize, sequence: u32, complete: bool, flags: u8) -> Vec<u8> {
    let mut bytes = vec![0xa5; PAYLOAD + payload];
    bytes[..PAYLOAD].fill(0);
    bytes[12..14].copy_from_slice(&[8, 0]);
    bytes[INNER + 12..INNER + 14].copy_from_slice(&[8, 0]);
    ip(&mut bytes, OUTER_IP, 17, flags);
    let length = bytes.len() - OUTER_UDP;
    set(&mut bytes, OUTER_UDP, 50_000);
    set(&mut bytes, OUTER_UDP + 2, 6081);
    set(&mut bytes, OUTER_UDP + 4, length);
    bytes[OUTER_UDP + 10..OUTER_UDP + 12].copy_from_slice(&[0x65, 0x58]);
    let pseudo = ip(&mut bytes, INNER_IP, 6, 0x40);
    let header = &mut bytes[INNER_TCP..];
    header[4..8].copy_from_slice(&sequence.to_be_bytes());
    header[12..14].copy_from_slice(&[0x50, 0x10]);
    let sum = if complete {
        checksum::finish(pseudo + checksum::sum(header))
    } else {
        checksum::fold(pseudo)
    };
    set(header, 16, usize::from(sum));
    bytes
}

/// With its header before it, cut into segments of `size`.
fn superpacket(frame: &[u8], size: u16) -> Vec<u8> {
    let at = |offset: usize| u16::try_from(offset).unwrap();
    let header = Header {
        checksum: Some(Checksum {
            start: at(INNER_TCP),
            offset: 16,
        }),
        gso: Some(Gso {
            kind: Kind::TcpV4,
            size,
            ecn: false,
            tunnel: Some(Tunnel {
                v6: false,
                checksum: false,
                outer_transport: at(OUTER_UDP),
                inner_network: at(INNER_IP),
            }),
        }),
        ..Header::default()
    };
    let mut bytes = [0; LONGEST];
    header.write(&mut bytes, Layout::Tunnel).unwrap();
    [&bytes[..], frame].concat()
}

/// Packets that the stack gets.
fn received(stack: &UnixDatagram) -> Vec<(Header, Vec<u8>)> {
    let mut bytes = vec![0; 70_000];
    std::iter::from_fn(|| {
        let length = stack.recv(&mut bytes).ok()?;
        let header = Header::parse(&bytes[..length], Layout::Tunnel).unwrap();
        Some((header, bytes[LONGEST..length].to_vec()))
    })
    .collect()
}

fn lengths(batch: &[Frame]) -> Vec<usize> {
    batch.iter().map(|frame| frame.len() - PAYLOAD).collect()
}

fn receive(port: &mut TapPort, pool: &mut Pool) -> Vec<Frame> {
    let mut batch = Vec::new();
    // It looks only now and then.
    for _ in 0..=SKIPPED {
        port.receive(pool, &mut batch, BATCH);
    }
    batch
}

#[test]
fn a_superpacket_is_cut_as_it_wants_to_be() {
    let (stack, mut port, mut pool) = pair();
    let frame = tcp(3 * 1400 + 100, 7, false, 0x40);
    stack.send(&superpacket(&frame, 1400)).unwrap();
    let batch = receive(&mut port, &mut pool);
    assert_eq!(lengths(&batch), [1400, 1400, 1400, 100]);
    assert_eq!(batch[1].bytes(), {
        let mut second = tcp(1400, 1407, true, 0x40);
        // Identification, which counts up outside as well.
        for at in [OUTER_IP, INNER_IP] {
            second[at + 5] = 1;
            set(&mut second, at + 10, 0);
            let sum = checksum::finish(checksum::sum(&second[at..at + 20]));
            set(&mut second, at + 10, usize::from(sum));
        }
        second
    });
    port.flush(&mut pool);
    assert!(received(&stack).is_empty());
}

#[test]
fn what_the_wire_does_not_take_is_cut_to_what_fits_and_its_sender_told() {
    for (flags, told) in [(0x40, 1), (0, 0)] {
        let (stack, mut port, mut pool) = pair();
        let wanted = LENGTHS.most - PAYLOAD + 1;
        let frame = tcp(3 * wanted, 7, false, flags);
        let packet = superpacket(&frame, u16::try_from(wanted).unwrap());
        stack.send(&packet).unwrap();
        let batch = receive(&mut port, &mut pool);
        assert_eq!(lengths(&batch).iter().sum::<usize>(), 3 * wanted);
        assert_eq!(batch[0].len(), LENGTHS.fits);
        for frame in batch {
            pool.give(frame);
        }
        port.flush(&mut pool);
        let answers = received(&stack);
        assert_eq!(answers.len(), told);
        for (header, answer) in answers {
            assert_eq!(header.checksum, None);
            // ICMP, fragmentation needed, of that MTU, as if the peer had sent it; it quotes the packet.
            assert_eq!(answer[OUTER_IP + 9], 1);
            assert_eq!(answer[OUTER_IP + 12..OUTER_IP + 16], [192, 0, 2, 2]);
            let icmp = &answer[OUTER_IP + 20..];
            assert_eq!(icmp[..2], [3, 4]);
            let mtu = u16::from_be_bytes([icmp[6], icmp[7]]);
            assert_eq!(usize::from(mtu), LENGTHS.fits - OUTER_IP);
            assert_eq!(icmp[8 + 9], 17);
        }
        assert_eq!(pool.free(), 64);
        assert_eq!(port.losses(), Losses::default());
    }
}

#[test]
fn what_may_still_fit_is_left_to_the_sa() {
    let (stack, mut port, mut pool) = pair();
    let wanted = LENGTHS.most - PAYLOAD;
    let frame = tcp(2 * wanted, 7, false, 0x40);
    let packet = superpacket(&frame, u16::try_from(wanted).unwrap());
    stack.send(&packet).unwrap();
    assert_eq!(lengths(&receive(&mut port, &mut pool)), [wanted; 2]);
    port.flush(&mut pool);
    assert!(received(&stack).is_empty());
}

#[test]
fn without_frames_a_superpacket_is_held() {
    let (stack, mut port, mut pool) = pair();
    let frame = tcp(70 * 800, 7, false, 0x40);
    stack.send(&superpacket(&frame, 800)).unwrap();
    let first = receive(&mut port, &mut pool);
    assert_eq!((first.len(), pool.free()), (64, 0));
    assert!(port.is_pending());
    assert!(receive(&mut port, &mut pool).is_empty() && port.is_pending());
    for frame in first {
        pool.give(frame);
    }
    assert_eq!(receive(&mut port, &mut pool).len(), 6);
    assert!(!port.is_pending());
}

#[test]
fn what_contradicts_itself_is_counted() {
    let (stack, mut port, mut pool) = pair();
    let frame = tcp(2800, 7, false, 0x40);
    let mut packet = superpacket(&frame, 1400);
    packet[LONGEST + OUTER_IP + 3] ^= 1;
    stack.send(&packet).unwrap();
    stack.send(&packet[..10]).unwrap();
    assert!(receive(&mut port, &mut pool).is_empty());
    assert_eq!(port.losses().refused, 2);
}

/// Segments that follow each other, the third of which has a wrong checksum.
fn send(port: &mut TapPort, pool: &mut Pool, authenticated: bool) {
    for index in 0..4_u32 {
        let mut bytes = tcp(1000, 7 + 1000 * index, true, 0x40);
        bytes[INNER_IP + 5] = u8::try_from(index).unwrap();
        set(&mut bytes, INNER_IP + 10, 0);
        let sum = checksum::finish(checksum::sum(&bytes[INNER_IP..INNER_TCP]));
        set(&mut bytes, INNER_IP + 10, usize::from(sum));
        bytes[PAYLOAD] ^= u8::from(index == 2);
        let mut frame = pool.take().unwrap();
        frame.write(&bytes).unwrap();
        frame.set_authenticated(authenticated);
        port.queue(frame, pool).unwrap();
    }
    port.flush(pool);
}

#[test]
fn what_was_authenticated_is_joined_and_not_summed_up_again() {
    let (stack, mut port, mut pool) = pair();
    send(&mut port, &mut pool, true);
    let packets = received(&stack);
    let [(header, bytes)] = &packets[..] else {
        panic!("{} packets", packets.len());
    };
    assert_eq!(bytes.len(), PAYLOAD + 4000);
    assert_eq!(header.gso.unwrap().size, 1000);
    assert!(header.checksum.is_some());
    assert_eq!(pool.free(), 64);
}

#[test]
fn what_nobody_has_authenticated_is_summed_up() {
    let (stack, mut port, mut pool) = pair();
    send(&mut port, &mut pool, false);
    let packets = received(&stack);
    let lengths: Vec<_> = packets.iter().map(|(_, bytes)| bytes.len()).collect();
    assert_eq!(lengths, [PAYLOAD + 2000, PAYLOAD + 1000, PAYLOAD + 1000]);
    // The stack finds out for itself.
    assert_eq!(packets[1].0.checksum, None);
}
