//! A map that all workers read without locks and the discovery client writes: shards, each an immutable table that a write
//! replaces. A write costs its shard, one sixty-fourth of the map.

use std::collections::HashMap;

use arc_swap::ArcSwap;
use hashbrown::HashTable;

const SHARDS: usize = 64;

pub(crate) struct Table<K, V> {
    shards: Box<[Shard<K, V>]>,
}

type Shard<K, V> = ArcSwap<HashTable<(K, V)>>;

/// A key that is put in, or taken out.
pub(crate) struct Write<K, V> {
    pub(crate) hash: u64,
    pub(crate) key: K,
    pub(crate) value: Option<V>,
}

impl<K: Clone + PartialEq, V: Clone> Table<K, V> {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| ArcSwap::from_pointee(HashTable::new())).collect(),
        }
    }

    /// Looks a key up by its hash.
    pub(crate) fn get(&self, hash: u64, is: impl Fn(&K) -> bool) -> Option<V> {
        let shard = self.shards[shard(hash)].load();
        shard.find(hash, |(key, _)| is(key)).map(|(_, value)| value.clone())
    }

    /// Applies writes, those of one shard at once. `rehash` is the hash of a key that is in the table.
    pub(crate) fn apply(&self, writes: Vec<Write<K, V>>, rehash: impl Fn(&K) -> u64) {
        let mut by_shard: HashMap<usize, Vec<Write<K, V>>> = HashMap::new();
        for write in writes {
            by_shard.entry(shard(write.hash)).or_default().push(write);
        }
        for (shard, writes) in by_shard {
            let shard = &self.shards[shard];
            let mut table = HashTable::clone(&shard.load());
            for write in writes {
                if let Ok(known) = table.find_entry(write.hash, |(key, _)| *key == write.key) {
                    known.remove();
                }
                if let Some(value) = write.value {
                    table.insert_unique(write.hash, (write.key, value), |(key, _)| rehash(key));
                }
            }
            shard.store(table.into());
        }
    }
}

/// By bits that the table itself uses least.
fn shard(hash: u64) -> usize {
    (hash >> 32) as usize % SHARDS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hash(key: &u16) -> u64 {
        u64::from(*key % 200).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    proptest! {
        #[test]
        fn like_a_map(batches in prop::collection::vec(prop::collection::vec((0..400_u16, prop::option::of(0..9_u8)), 1..20), 1..20)) {
            let table = Table::new();
            let mut map = HashMap::new();
            for batch in batches {
                let mut writes = Vec::new();
                for (key, value) in batch {
                    match value {
                        Some(value) => map.insert(key, value),
                        None => map.remove(&key),
                    };
                    writes.push(Write { hash: hash(&key), key, value });
                }
                table.apply(writes, hash);
                for key in 0..400 {
                    prop_assert_eq!(table.get(hash(&key), |known| *known == key), map.get(&key).copied());
                }
            }
        }
    }
}
