//! What a frame on the wire is, by nothing of Culvert's.

/// Kinds of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// ESP, also in UDP.
    Esp,
    /// Geneve in clear.
    Geneve,
    /// Everything else.
    Other,
}

/// EtherTypes, IP protocols, and UDP ports of Geneve and of ESP in UDP.
const IPV4: [u8; 2] = [8, 0];
const IPV6: [u8; 2] = [0x86, 0xdd];
const UDP: u8 = 17;
const ESP: u8 = 50;
const GENEVE: [u8; 2] = 6081_u16.to_be_bytes();
const NAT_T: [u8; 2] = 4500_u16.to_be_bytes();

/// Sorts an Ethernet frame without VLAN tags.
#[must_use]
pub fn sort(frame: &[u8]) -> Sort {
    sort_ip(frame).unwrap_or(Sort::Other)
}

fn sort_ip(frame: &[u8]) -> Option<Sort> {
    let (protocol, transport) = match frame.get(12..14)?.try_into().ok()? {
        IPV4 => (*frame.get(23)?, 14 + usize::from(frame.get(14)? & 15) * 4),
        IPV6 => (*frame.get(20)?, 14 + 40),
        _ => return None,
    };
    match protocol {
        ESP => Some(Sort::Esp),
        UDP => {
            let ports = frame.get(transport..transport + 4)?;
            let is = |port: [u8; 2]| ports[..2] == port || ports[2..] == port;
            if is(GENEVE) {
                Some(Sort::Geneve)
            } else {
                is(NAT_T).then_some(Sort::Esp)
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(ethertype: [u8; 2], protocol: u8, port: [u8; 2]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend(ethertype);
        if ethertype == IPV4 {
            // With four bytes of options.
            frame.push(0x46);
            frame.extend([0; 23]);
            frame[23] = protocol;
        } else {
            frame.extend([0; 40]);
            frame[20] = protocol;
        }
        frame.extend([0x12, 0x34]);
        frame.extend(port);
        frame
    }

    #[test]
    fn frames_are_told_apart() {
        for ip in [IPV4, IPV6] {
            assert_eq!(sort(&frame(ip, ESP, [0, 0])), Sort::Esp);
            assert_eq!(sort(&frame(ip, UDP, NAT_T)), Sort::Esp);
            assert_eq!(sort(&frame(ip, UDP, GENEVE)), Sort::Geneve);
            assert_eq!(sort(&frame(ip, UDP, [0, 53])), Sort::Other);
            assert_eq!(sort(&frame(ip, 6, GENEVE)), Sort::Other);
        }
        assert_eq!(sort(&frame([8, 6], UDP, GENEVE)), Sort::Other);
        assert_eq!(sort(&[0; 20]), Sort::Other);
    }
}
