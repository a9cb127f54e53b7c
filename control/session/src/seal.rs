//! Session tokens are kept in the journal encrypted under the installation's master key, so that
//! a copy of the database is worth nothing without the key file beside it.

use aes_gcm_siv::aead::{Aead, Generate, KeyInit, Payload};
use aes_gcm_siv::{Aes256GcmSiv, Key, Nonce};
use base_types::{Secret, WorkId};
use store_api::Sealed;

/// 256 bits.
pub const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;

/// Encrypts and decrypts under one master key.
#[derive(Clone)]
pub struct Sealer(Aes256GcmSiv);

#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("encrypt a session token")]
    Seal,
    #[error(
        "a stored session token does not open: the master key is not the one it was sealed with"
    )]
    Open,
}

impl Sealer {
    pub fn new(key: &[u8; KEY_BYTES]) -> Self {
        Self(Aes256GcmSiv::new(&Key::<Aes256GcmSiv>::from(*key)))
    }

    /// Binds the token to its work item: one item's sealed token does not open as another's.
    pub fn seal(&self, work: &WorkId, token: &Secret) -> Result<Sealed, SealError> {
        let nonce = Nonce::generate();
        let payload = Payload { msg: token.expose().as_bytes(), aad: work.as_str().as_bytes() };
        let sealed = self.0.encrypt(&nonce, payload).map_err(|_| SealError::Seal)?;
        Ok(Sealed([nonce.as_slice(), &sealed].concat()))
    }

    pub fn open(&self, work: &WorkId, sealed: &Sealed) -> Result<Secret, SealError> {
        let (nonce, body) = sealed.0.split_at_checked(NONCE_BYTES).ok_or(SealError::Open)?;
        let nonce = Nonce::try_from(nonce).map_err(|_| SealError::Open)?;
        let payload = Payload { msg: body, aad: work.as_str().as_bytes() };
        let plain = self.0.decrypt(&nonce, payload).map_err(|_| SealError::Open)?;
        String::from_utf8(plain).map(Secret::new).map_err(|_| SealError::Open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_only_for_its_item_and_under_its_key() {
        let sealer = Sealer::new(&[7; KEY_BYTES]);
        let (work, other) = (WorkId::from("work_1"), WorkId::from("work_2"));
        let sealed = sealer.seal(&work, &Secret::new("token")).unwrap();
        assert_eq!(sealer.open(&work, &sealed).unwrap().expose(), "token");
        assert!(sealer.open(&other, &sealed).is_err());
        assert!(Sealer::new(&[8; KEY_BYTES]).open(&work, &sealed).is_err());
        assert!(sealer.open(&work, &Sealed(vec![1, 2, 3])).is_err());
        assert!(!sealed.0.windows(5).any(|window| window == b"token"));
    }
}
