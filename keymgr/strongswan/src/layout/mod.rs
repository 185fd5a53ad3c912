//! How strongSwan's structs lie in memory: a module for each version.
//!
//! No package ships the headers, so the structs are written down here, with offsets that the compiler checks;
//! `tests/layout.rs` compares them with the headers.

use std::fmt::{self, Display};

/// Something that the headers say, too.
pub enum Fact {
    /// Name of a type, and its size.
    Type(&'static str, usize),
    /// Names of a struct and its field; the field's offset and size.
    Field(&'static str, &'static str, usize, usize),
    /// Name of a constant, and its value.
    Value(&'static str, i64),
}

impl Fact {
    /// What is right.
    #[must_use]
    pub fn numbers(&self) -> String {
        match self {
            Self::Type(_, size) => size.to_string(),
            Self::Field(_, _, offset, size) => format!("{offset} {size}"),
            Self::Value(_, value) => value.to_string(),
        }
    }
}

impl Display for Fact {
    /// As a call of the probe's macros.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Type(name, _) => write!(f, "TYPE({name})"),
            Self::Field(name, field, _, _) => write!(f, "FIELD({name}, {field})"),
            Self::Value(name, _) => write!(f, "VALUE({name})"),
        }
    }
}

/// Structs of C: name, size unless only the start of it is known here, name in C; for each field its offset and name
/// in C, then the field. What has no name in C is between fields that matter.
macro_rules! c_structs {
    ($facts:ident: $(
        $(#[$doc:meta])*
        $name:ident $(<$life:lifetime>)? $(= $size:literal)? $c:literal {
            $($($offset:literal $c_field:literal)? $field:ident: $type:ty,)*
        }
    )*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            pub(crate) struct $name $(<$life>)? {
                $(pub(crate) $field: $type,)*
            }
            $(const _: () = assert!(size_of::<$name>() == $size);)?
            $($(const _: () = assert!(std::mem::offset_of!($name, $field) == $offset);)?)*
        )*
        fn $facts() -> Vec<$crate::layout::Fact> {
            use $crate::layout::Fact;
            vec![$(
                $(Fact::Type($c, $size),)?
                $($(Fact::Field($c, $c_field, $offset, $crate::layout::size_of_field(|it: &$name| &raw const it.$field)),)?)*
            )*]
        }
    };
}

/// Constants of C.
macro_rules! c_values {
    ($facts:ident: $($name:ident: $type:ty = $value:literal;)*) => {
        $(pub(crate) const $name: $type = $value;)*
        fn $facts() -> Vec<$crate::layout::Fact> {
            vec![$($crate::layout::Fact::Value(stringify!($name), $value),)*]
        }
    };
}

/// Size of what a pointer to a field points to.
const fn size_of_field<S, F>(_: fn(&S) -> *const F) -> usize {
    size_of::<F>()
}

mod v5_9_8;

pub(crate) use v5_9_8::*;
pub use v5_9_8::{VERSION, facts};

/// The versions that are known.
pub(crate) const KNOWN: [&str; 1] = [VERSION];
