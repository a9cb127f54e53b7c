//! Prints an error with its causes, once: `start session: open image: no such file`.

use std::error::Error;
use std::fmt;

/// Our `Display` texts never repeat their source, so whoever consumes an error prints the chain.
pub struct Chain<'a>(pub &'a (dyn Error + 'a));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
