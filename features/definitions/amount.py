"""How much: amounts of payments, against the card's and the merchant's own."""

from __future__ import annotations

from features.spec import Feature

__all__ = ["FEATURES"]


def _pay(
    name: str, entity: str, op: str, why: str, unit: str, *, column: str | None = None,
    where: str | None = None, window_s: int | None = None, baseline: str | None = None,
    high_is_odd: bool | None = True,
) -> Feature:
    return Feature(name, "payment", entity, op, why, unit, "amount", column=column, where=where,
                   window_s=window_s, baseline=baseline, high_is_odd=high_is_odd)


FEATURES: tuple[Feature, ...] = (
    _pay("card_amount_sum_1h", "card", "sum", "{value} spent with this card in 1 h", "currency",
         column="amount", window_s=3600),
    _pay("card_amount_max_1h", "card", "max", "largest payment of this card in 1 h is {value}",
         "currency", column="amount", window_s=3600),
    _pay("card_amount_min_1h", "card", "min", "smallest payment of this card in 1 h is {value}",
         "currency", column="amount", window_s=3600, high_is_odd=False),
    _pay("card_amount_mean_1h", "card", "mean", "mean payment of this card in 1 h is {value}",
         "currency", column="amount", window_s=3600),
    _pay("card_amount_median", "card", "median_size", "{value} is the card's median payment",
         "currency", column="log_amount", high_is_odd=None),
    _pay("card_amount_z", "card", "z",
         "the amount is {value} from this card's usual one (median {baseline})", "sigma",
         column="log_amount", baseline="card_amount_median", high_is_odd=None),
    _pay("card_amount_robust_z", "card", "robust_z",
         "the amount is {value} (by quartiles) from this card's median {baseline}", "sigma",
         column="log_amount", baseline="card_amount_median", high_is_odd=None),
    _pay("card_amount_iqr_distance", "card", "iqr_distance",
         "the amount is {value} interquartile ranges outside this card's quartiles"
         " (median {baseline})", "1", column="log_amount", baseline="card_amount_median"),
    _pay("card_amount_quantile", "card", "quantile",
         "a share of {value} of the card's last payments were smaller", "1", column="log_amount",
         high_is_odd=None),
    _pay("card_amount_drift", "card", "drift",
         "the card's last payments together are {value} above its usual ones", "sigma",
         column="log_amount"),
    _pay("merchant_amount_z", "merchant", "z",
         "the amount is {value} from what is usual at this merchant", "sigma",
         column="log_amount", high_is_odd=None),
    _pay("merchant_amount_robust_z", "merchant", "robust_z",
         "the amount is {value} (by quartiles) from this merchant's median", "sigma",
         column="log_amount", high_is_odd=None),
    _pay("merchant_amount_drift", "merchant", "drift",
         "the merchant's last payments together are {value} above its usual ones", "sigma",
         column="log_amount", high_is_odd=None),
    _pay("merchant_small_share_1h", "merchant", "share",
         "a share of {value} of this merchant's payments in 1 h is tiny", "1", where="small",
         window_s=3600),
    _pay("merchant_round_share_1h", "merchant", "share",
         "a share of {value} of this merchant's payments in 1 h are large round sums", "1",
         where="round", window_s=3600),
    _pay("merchant_amount_std_1h", "merchant", "std",
         "payments at this merchant in 1 h differ by {value}", "currency", column="amount",
         window_s=3600, high_is_odd=None),
    _pay("device_small_share_1h", "device", "share",
         "a share of {value} of this device's payments in 1 h is tiny", "1", where="small",
         window_s=3600),
)
