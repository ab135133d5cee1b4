//! Finding the token that is presented.
//!
//! Whoever guesses sees how long an answer takes, and must learn nothing from it of the digests in the list. So the digest
//! of what is presented is compared with as many others each time, whether one of them is the same or none, each by a
//! comparison that takes as long wherever two digests first differ ([`subtle`]), and none ends the search.
//!
//! To compare it with all 10,000 that there may be takes 0.7 ms (2 busy cores), thirty times as long as a read. The list is
//! therefore split into buckets by the first bytes of the digests, and every bucket is filled up to the same number: 2 µs, of
//! which the hash takes a part. Which bucket is looked at follows from
//! what is presented alone, which is known to whoever presents it; it says nothing of what the bucket holds. What processor
//! caches could tell beyond that, through a network, would be which buckets were used lately: some first bits of the digest
//! of a token of 256 random bits, which is no step towards the token.

use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::{Grant, TokenDigest};

/// About as many tokens are in a bucket, a few more in the fullest.
const PER_BUCKET: usize = 4;
/// Each bucket is picked by this many bytes, so that there can be no more buckets than they have values.
const PICKED_BY: usize = 2;

/// Where a digest's grant stands. Fillers have a place beyond all grants, which no search gives back.
#[derive(Clone, Copy)]
struct Entry {
    digest: TokenDigest,
    grant: u32,
}

/// A list of tokens, ready to be searched.
pub(super) struct Table {
    grants: Vec<Grant>,
    /// All buckets, one behind the other.
    entries: Vec<Entry>,
    buckets: usize,
}

impl Table {
    pub(super) fn new(tokens: Vec<(TokenDigest, Grant)>) -> Self {
        let most = 1 << (8 * PICKED_BY);
        let buckets = (tokens.len() / PER_BUCKET).next_power_of_two().min(most);
        let mut split = vec![Vec::new(); buckets];
        let mut grants = Vec::with_capacity(tokens.len());
        for (number, (digest, grant)) in (0..).zip(tokens) {
            split[bucket_of(&digest, buckets)].push(Entry { digest, grant: number });
            grants.push(grant);
        }
        let width = split.iter().map(Vec::len).max().unwrap_or_default();
        let filler = Entry {
            digest: TokenDigest::default(),
            grant: u32::MAX,
        };
        for bucket in &mut split {
            bucket.resize(width, filler);
        }
        Self {
            grants,
            entries: split.concat(),
            buckets,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.grants.len()
    }

    /// The grant of this digest, if it has one.
    pub(super) fn find(&self, presented: &TokenDigest) -> Option<&Grant> {
        let width = self.entries.len() / self.buckets;
        let start = bucket_of(presented, self.buckets) * width;
        let mut found = u32::MAX;
        for entry in &self.entries[start..start + width] {
            let is_same: Choice = entry.digest.ct_eq(presented);
            found.conditional_assign(&entry.grant, is_same);
        }
        // From here on the answer says it anyway.
        self.grants.get(usize::try_from(found).ok()?)
    }
}

fn bucket_of(digest: &TokenDigest, buckets: usize) -> usize {
    // Of a power of two of buckets.
    usize::from(u16::from_le_bytes([digest[0], digest[1]])) & (buckets - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::CallerName;
    use crate::tokens::{Scopes, digest};

    fn table(count: usize) -> Table {
        let token = |number: usize| {
            let grant = Grant {
                caller: CallerName::new(format!("caller-{number}")).unwrap(),
                scopes: Scopes::parse("read").unwrap(),
            };
            (digest(number.to_string().as_bytes()), grant)
        };
        Table::new((0..count).map(token).collect())
    }

    #[test]
    fn every_token_of_the_list_is_found_under_its_own_name_and_no_other_is() {
        for count in [1, 2, 3, 5, 64, 1_000, 10_000] {
            let table = table(count);
            assert_eq!(table.len(), count);
            for number in 0..count {
                let found = table.find(&digest(number.to_string().as_bytes())).unwrap();
                assert_eq!(found.caller.as_str(), format!("caller-{number}"));
            }
            for number in count..count + 1_000 {
                assert_eq!(table.find(&digest(number.to_string().as_bytes())), None);
            }
            // That of the fillers.
            assert_eq!(table.find(&TokenDigest::default()), None);
        }
    }

    #[test]
    fn a_digest_that_differs_in_one_bit_is_not_found() {
        let table = table(1_000);
        let known = digest(b"7");
        for bit in 0..256 {
            let mut other = known;
            other[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(table.find(&other), None, "{bit}");
        }
    }

    #[test]
    fn as_many_digests_are_compared_whatever_is_presented_and_few_of_ten_thousand() {
        let table = table(10_000);
        assert_eq!(table.entries.len() % table.buckets, 0);
        let width = table.entries.len() / table.buckets;
        assert!((PER_BUCKET..=24).contains(&width), "{width}");
    }
}
