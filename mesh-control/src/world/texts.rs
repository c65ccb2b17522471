//! Texts that many objects have, kept once: label names, namespaces, service accounts.

use std::collections::HashSet;
use std::sync::Arc;

/// Texts that nobody has any longer are looked for when there are so many, or twice as many as had to stay last time.
const FIRST_LIMIT: usize = 1024;

/// Shared texts.
#[derive(Debug)]
pub struct Texts {
    known: HashSet<Arc<str>>,
    limit: usize,
}

impl Default for Texts {
    fn default() -> Self {
        Self {
            known: HashSet::new(),
            limit: FIRST_LIMIT,
        }
    }
}

impl Texts {
    /// The one copy of a text.
    pub fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.known.get(text) {
            return known.clone();
        }
        if self.known.len() >= self.limit {
            self.known.retain(|text| Arc::strong_count(text) > 1);
            self.limit = FIRST_LIMIT.max(self.known.len() * 2);
        }
        let text: Arc<str> = text.into();
        self.known.insert(text.clone());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_there_once_as_long_as_anybody_has_it() {
        let mut texts = Texts::default();
        let one = texts.share("app");
        assert!(Arc::ptr_eq(&one, &texts.share("app")));
        for i in 0..10 * FIRST_LIMIT {
            texts.share(&i.to_string());
        }
        assert!(texts.known.len() <= FIRST_LIMIT);
        assert!(Arc::ptr_eq(&one, &texts.share("app")));
    }
}
