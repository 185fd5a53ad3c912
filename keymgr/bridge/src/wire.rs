//! How records are written: numbers little-endian, lists and texts behind their length, choices behind a number.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Something that goes over the socket.
pub trait Wire: Sized {
    /// Appends it.
    fn write(&self, to: &mut Vec<u8>);
    /// Takes it off the front; `None`: that is not one.
    fn read(from: &mut &[u8]) -> Option<Self>;
}

/// A whole message: nothing may be left.
#[must_use]
pub fn decode<T: Wire>(mut bytes: &[u8]) -> Option<T> {
    let value = T::read(&mut bytes)?;
    bytes.is_empty().then_some(value)
}

macro_rules! numbers {
    ($($number:ty)*) => {$(
        impl Wire for $number {
            fn write(&self, to: &mut Vec<u8>) {
                to.extend_from_slice(&self.to_le_bytes());
            }
            fn read(from: &mut &[u8]) -> Option<Self> {
                let (number, rest) = from.split_first_chunk()?;
                *from = rest;
                Some(Self::from_le_bytes(*number))
            }
        }
    )*};
}
numbers!(u8 u16 u32 u64);

impl Wire for bool {
    fn write(&self, to: &mut Vec<u8>) {
        to.push(u8::from(*self));
    }
    fn read(from: &mut &[u8]) -> Option<Self> {
        match u8::read(from)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl Wire for String {
    fn write(&self, to: &mut Vec<u8>) {
        write_length(self.len(), to);
        to.extend_from_slice(self.as_bytes());
    }
    fn read(from: &mut &[u8]) -> Option<Self> {
        Self::from_utf8(read_bytes(from)?.to_vec()).ok()
    }
}

impl Wire for IpAddr {
    fn write(&self, to: &mut Vec<u8>) {
        match self {
            Self::V4(address) => {
                to.push(4);
                to.extend_from_slice(&address.octets());
            }
            Self::V6(address) => {
                to.push(6);
                to.extend_from_slice(&address.octets());
            }
        }
    }
    fn read(from: &mut &[u8]) -> Option<Self> {
        match u8::read(from)? {
            4 => {
                let (octets, rest) = from.split_first_chunk::<4>()?;
                *from = rest;
                Some(Ipv4Addr::from(*octets).into())
            }
            6 => {
                let (octets, rest) = from.split_first_chunk::<16>()?;
                *from = rest;
                Some(Ipv6Addr::from(*octets).into())
            }
            _ => None,
        }
    }
}

impl Wire for SocketAddr {
    fn write(&self, to: &mut Vec<u8>) {
        self.ip().write(to);
        self.port().write(to);
    }
    fn read(from: &mut &[u8]) -> Option<Self> {
        Some(Self::new(IpAddr::read(from)?, u16::read(from)?))
    }
}

impl<T: Wire> Wire for Option<T> {
    fn write(&self, to: &mut Vec<u8>) {
        self.is_some().write(to);
        if let Some(value) = self {
            value.write(to);
        }
    }
    fn read(from: &mut &[u8]) -> Option<Self> {
        if bool::read(from)? {
            Some(Some(T::read(from)?))
        } else {
            Some(None)
        }
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn write(&self, to: &mut Vec<u8>) {
        write_length(self.len(), to);
        for value in self {
            value.write(to);
        }
    }
    fn read(from: &mut &[u8]) -> Option<Self> {
        // Every element takes a byte at least, so that no memory is set aside on a stranger's word.
        let count = read_length(from).filter(|count| *count <= from.len())?;
        (0..count).map(|_| T::read(from)).collect()
    }
}

/// Writes the length of what follows.
pub(crate) fn write_length(length: usize, to: &mut Vec<u8>) {
    // A message is bounded far below this.
    u32::try_from(length).unwrap_or(u32::MAX).write(to);
}

fn read_length(from: &mut &[u8]) -> Option<usize> {
    usize::try_from(u32::read(from)?).ok()
}

/// Reads bytes behind their length.
pub(crate) fn read_bytes<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = read_length(from)?;
    let (bytes, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(bytes)
}

/// A struct and how it goes over the wire: field after field.
macro_rules! record {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }
        impl $crate::wire::Wire for $name {
            fn write(&self, to: &mut Vec<u8>) {
                $(self.$field.write(to);)*
            }
            fn read(from: &mut &[u8]) -> Option<Self> {
                Some(Self { $($field: <$type as $crate::wire::Wire>::read(from)?,)* })
            }
        }
    };
}
pub(crate) use record;

/// An enum and how it goes over the wire: its number, then what it holds.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $number:literal $variant:ident $(($type:ty))?,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant $(($type))?,)*
        }
        impl $crate::wire::Wire for $name {
            fn write(&self, to: &mut Vec<u8>) {
                $($crate::wire::choice!(@write self to $name $number $variant $($type)?);)*
            }
            fn read(from: &mut &[u8]) -> Option<Self> {
                match u8::read(from)? {
                    $($number => Some($crate::wire::choice!(@read from $name $variant $($type)?)),)*
                    _ => None,
                }
            }
        }
    };
    (@write $self:ident $to:ident $name:ident $number:literal $variant:ident $type:ty) => {
        if let $name::$variant(value) = $self {
            $to.push($number);
            value.write($to);
        }
    };
    (@write $self:ident $to:ident $name:ident $number:literal $variant:ident) => {
        if let $name::$variant = $self {
            $to.push($number);
        }
    };
    (@read $from:ident $name:ident $variant:ident $type:ty) => {
        $name::$variant(<$type as $crate::wire::Wire>::read($from)?)
    };
    (@read $from:ident $name:ident $variant:ident) => {
        $name::$variant
    };
}
pub(crate) use choice;
