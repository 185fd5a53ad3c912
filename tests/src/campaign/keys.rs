//! Keys of a campaign: both sides get new ones now and then, whoever serves a side.

use anyhow::Result;
use culvert_proto::sa::Cipher;

use crate::keys::Generation;
use crate::lab::Lab;

/// Gives the side of that number its keys: it accepts under all the generations, and sends under the one at the index.
pub type Give = Box<dyn FnMut(&Lab, usize, &[&Generation], usize) -> Result<()>>;

/// The keys in use, and how to give others.
pub struct Keys {
    give: Give,
    cipher: Cipher,
    current: Generation,
    generations: u32,
}

impl Keys {
    /// Begins with the first keys, which both sides are to be given.
    ///
    /// # Errors
    /// The kernel has no random bytes.
    pub fn new(cipher: Cipher, give: Give) -> Result<Self> {
        Ok(Self {
            give,
            cipher,
            current: generation(cipher, 0)?,
            generations: 1,
        })
    }

    /// The keys in use.
    #[must_use]
    pub const fn current(&self) -> &Generation {
        &self.current
    }

    /// Gives a side the keys in use.
    ///
    /// # Errors
    /// It refuses.
    pub fn give_current(&mut self, lab: &Lab, side: usize) -> Result<()> {
        (self.give)(lab, side, &[&self.current], 0)
    }

    /// Others, which nobody has yet.
    ///
    /// # Errors
    /// The kernel has no random bytes.
    pub fn fresh(&mut self) -> Result<Generation> {
        self.generations += 1;
        generation(self.cipher, self.generations - 1)
    }

    /// Has one side accept under `next`, too.
    ///
    /// # Errors
    /// It refuses.
    pub fn offer(&mut self, lab: &Lab, side: usize, next: &Generation) -> Result<()> {
        (self.give)(lab, side, &[&self.current, next], 0)
    }

    /// Has both sides use `next` instead: accepted everywhere before it is used anywhere, and the old ones dropped only
    /// when they are used nowhere.
    ///
    /// # Errors
    /// A side refuses.
    pub fn change(&mut self, lab: &Lab, next: Generation) -> Result<()> {
        for out in 0..2 {
            for side in 0..2 {
                (self.give)(lab, side, &[&self.current, &next], out)?;
            }
        }
        self.current = next;
        for side in 0..2 {
            self.give_current(lab, side)?;
        }
        Ok(())
    }
}

fn generation(cipher: Cipher, number: u32) -> Result<Generation> {
    Generation::new(cipher, [0x1100 + number, 0x2100 + number])
}
