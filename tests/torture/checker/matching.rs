//! Pairs each of some seekers with one of what they may have, so that as many as can be have one.

use std::collections::VecDeque;

/// For each seeker the place of what it has. `fitting` says which places each of them may have. The earlier ones come first:
/// one that has something keeps having something.
pub fn pair(fitting: &[Vec<usize>], places: usize) -> Vec<Option<usize>> {
    let mut has = vec![None; fitting.len()];
    let mut taken_by: Vec<Option<usize>> = vec![None; places];
    for seeker in 0..fitting.len() {
        // Who asked for each place in vain: it gets that place if its own can be given away.
        let mut asked_by: Vec<Option<usize>> = Vec::new();
        let mut waiting = VecDeque::from([seeker]);
        let mut free = None;
        // Nearly always one of its own is free.
        if let Some(place) = fitting[seeker].iter().find(|place| taken_by[**place].is_none()) {
            (taken_by[*place], has[seeker]) = (Some(seeker), Some(*place));
            continue;
        }
        asked_by.resize(places, None);
        while let Some(one) = waiting.pop_front()
            && free.is_none()
        {
            for place in &fitting[one] {
                if asked_by[*place].is_some() {
                    continue;
                }
                asked_by[*place] = Some(one);
                match taken_by[*place] {
                    Some(other) => waiting.push_back(other),
                    None => {
                        free = Some(*place);
                        break;
                    }
                }
            }
        }
        while let Some(place) = free {
            let Some(one) = asked_by[place] else { break };
            free = has[one].replace(place);
            taken_by[place] = Some(one);
            if one == seeker {
                break;
            }
        }
    }
    has
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Random;

    /// The most that can have one, by trying everything.
    fn most(fitting: &[Vec<usize>], taken: &mut Vec<usize>) -> usize {
        let Some((first, rest)) = fitting.split_first() else {
            return 0;
        };
        let mut best = most(rest, taken);
        for place in first {
            if !taken.contains(place) {
                taken.push(*place);
                best = best.max(1 + most(rest, taken));
                taken.pop();
            }
        }
        best
    }

    #[test]
    fn as_many_as_can_be_have_one_and_the_earlier_come_first() {
        for seed in 0..500 {
            let mut random = Random(seed);
            let fitting: Vec<Vec<usize>> = (0..6)
                .map(|_| (0..5).filter(|_| random.percent(30)).collect())
                .collect();
            let has = pair(&fitting, 5);
            let mut places: Vec<usize> = has.iter().flatten().copied().collect();
            for (place, fits) in has.iter().zip(&fitting) {
                assert!(place.is_none_or(|place| fits.contains(&place)), "seed {seed}");
            }
            for first in 0..=fitting.len() {
                let having = has[..first].iter().flatten().count();
                assert_eq!(having, most(&fitting[..first], &mut Vec::new()), "seed {seed}");
            }
            places.sort_unstable();
            places.dedup();
            assert_eq!(places.len(), has.iter().flatten().count(), "seed {seed}");
        }
    }
}
