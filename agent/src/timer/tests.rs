use std::cell::Cell;

use proptest::prelude::*;
use tokio::task::LocalSet;

use super::*;

/// Runs `test` as a worker would, in paused time.
fn paused<F: Future>(test: F) -> F::Output {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("runtime");
    LocalSet::new().block_on(&runtime, test)
}

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_sleep_takes_as_long_as_it_says_however_long_that_is() {
    for ms in [0, 1, 63, 64, 65, 4_095, 4_096, 100_000, 3_600_000, 90_000_000] {
        paused(async {
            let timers = Timers::default();
            timers.sleep(MS * 7).await;
            let began = Instant::now();
            timers.sleep(MS * ms).await;
            let took = began.elapsed();
            assert!(took >= MS * ms && took <= MS * (ms + 1), "{ms} ms took {took:?}");
        });
    }
}

#[test]
fn a_deadline_that_moves_is_met_where_it_is_at_last() {
    for (moved_to, expected) in [(10, 10), (50, 50), (500, 500)] {
        paused(async {
            let timers = Timers::default();
            let mut timer = timers.timer();
            let (began, first) = (Instant::now(), Cell::new(true));
            poll_fn(|cx| {
                if first.replace(false) {
                    assert!(timer.poll(cx, began + MS * 100).is_pending());
                }
                timer.poll(cx, began + MS * moved_to)
            })
            .await;
            assert_eq!(began.elapsed().as_millis(), expected, "from 100 ms to {moved_to} ms");
        });
    }
}

#[test]
fn a_timer_serves_again_after_it_fired() {
    paused(async {
        let timers = Timers::default();
        let mut timer = timers.timer();
        for round in 0..3 {
            let deadline = Instant::now() + MS * (5 + round);
            poll_fn(|cx| timer.poll(cx, deadline)).await;
            assert!(Instant::now() >= deadline && Instant::now() <= deadline + MS);
        }
        assert_eq!(timers.0.borrow().entries.len(), 1);
    });
}

#[test]
fn what_takes_too_long_is_given_up_and_leaves_nothing() {
    paused(async {
        let timers = Timers::default();
        let began = Instant::now();
        assert_eq!(timers.timeout(MS * 20, std::future::pending::<()>()).await, None);
        assert_eq!(began.elapsed(), MS * 20);
        assert_eq!(timers.timeout(MS * 20, timers.sleep(MS * 10)).await, Some(()));
        assert_eq!(timers.0.borrow().occupied, [0; LEVELS]);
    });
}

#[test]
fn a_dropped_wheel_ends_its_task() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
    let tasks = LocalSet::new();
    tasks.block_on(&runtime, async {
        let timers = Timers::default();
        timers.sleep(MS).await;
    });
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), tasks).await.expect("the task ends") });
}

#[test]
fn the_time_of_day_goes_on_with_the_clock() {
    let (wall, now) = (WallClock::default(), Instant::now());
    let first = wall.at(now);
    assert!(first.elapsed().expect("past") < Duration::from_secs(5));
    assert_eq!(wall.at(now + MS * 999), first + MS * 999);
    // Asked anew.
    assert!(wall.at(now + MS * 5_000) < first + MS * 5_000);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Timers set at any time for any time, and some of them dropped: each that stays fires at its tick, in order.
    #[test]
    fn every_timer_fires_at_its_tick_and_none_that_was_dropped(
        timers in proptest::collection::vec((0_u64..300_000, 0_u64..20_000_000, any::<bool>()), 1..60)
    ) {
        let mut wheel = Wheel::default();
        let mut expected: Vec<u64> = Vec::new();
        let mut starts = timers.clone();
        starts.sort_unstable();
        let (mut woken, mut fired) = (Vec::new(), Vec::new());
        for (set_at, after, kept) in starts {
            step(&mut wheel, set_at, &mut fired, &mut woken);
            let place = wheel.new_entry();
            wheel.entries[place as usize].tick = wheel.now + 1 + after;
            wheel.link(place);
            if kept {
                wheel.entries[place as usize].waker = Some(Waker::noop().clone());
                expected.push(wheel.now + 1 + after);
            } else {
                wheel.unlink(place);
                wheel.free_entry(place);
            }
        }
        step(&mut wheel, 30_000_000, &mut fired, &mut woken);
        expected.sort_unstable();
        prop_assert_eq!(woken, expected);
        prop_assert_eq!(wheel.occupied, [0; LEVELS]);
    }
}

/// Turns the wheel to `until`, from one slot that is due to the next, and notes at which tick what fires.
fn step(wheel: &mut Wheel, until: u64, fired: &mut Vec<Waker>, woken: &mut Vec<u64>) {
    loop {
        let next = wheel.first().map_or(until, |(_, at)| at.min(until));
        assert!(next > wheel.now || next == until, "the wheel stands still");
        wheel.advance(next, fired);
        woken.extend(fired.drain(..).map(|_| wheel.now));
        if next == until {
            return;
        }
    }
}
