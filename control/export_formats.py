"""Usage as files: CSV, JSON and FOCUS 1.2, written in batches of rows so that no export has to fit into memory."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta

from uplion.control.v1.usage_pb2 import UsageClass

from control.charges import COMPUTE, REQUEST, TOKENS, Charge, Columns, Rates, charges
from control.requests.fields import decimal_text
from ledger.periods import month_start, next_month
from ledger.usage_columns import TOKEN_COLUMNS

Row = Columns  # a rollup's columns, and the account's, project's and key's names
Prices = Mapping[int, Rates]  # by version
Writer = Callable[[Iterable[Row], Prices, bool], str]  # some rows, and whether they are the first

_DIMENSIONS = ("account", "project", "key", "model", "tier", "currency")
_COUNTS = ("requests", *TOKEN_COLUMNS)
COLUMNS = ("hour", *_DIMENSIONS, "price_version", "policy", *_COUNTS, "compute_seconds", "cost")
# A spreadsheet evaluates a cell that begins so as a formula (CWE-1236), and names are chosen by clients.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_NO_CURRENCY = "XXX"  # ISO 4217's code for none; FOCUS wants one in every row
_PROVIDER = "Uplion"

# The mandatory columns of FOCUS 1.2, then those optional ones that apply here, then our own.
FOCUS_COLUMNS = (
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ContractedCost",
    "EffectiveCost",
    "InvoiceIssuerName",
    "ListCost",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "ServiceCategory",
    "ServiceName",
    "ChargeFrequency",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedUnitPrice",
    "ListUnitPrice",
    "PricingCategory",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceSubcategory",
    "SkuId",
    "SkuPriceId",
    "SubAccountId",
    "SubAccountName",
    "Tags",
    "x_Model",
    "x_Policy",
    "x_Tier",
    "x_UsageClass",
)


def write_csv(rows: Iterable[Row], prices: Prices, first: bool) -> str:
    """One line for each rollup."""
    out = io.StringIO()
    writer = csv.writer(out)
    if first:
        writer.writerow(COLUMNS)
    for row in rows:
        values = _flat(row)
        writer.writerow([_cell(values[name]) for name in COLUMNS])
    return out.getvalue()


def write_json(rows: Iterable[Row], prices: Prices, first: bool) -> str:
    """An array of objects; JSON_END closes it."""
    texts = [json.dumps(_flat(row), ensure_ascii=False) for row in rows]
    if first:
        return "[" + "".join(f"{',' if number else ''}\n{text}" for number, text in enumerate(texts))
    return "".join(f",\n{text}" for text in texts)


JSON_END = "\n]\n"


def write_focus(rows: Iterable[Row], prices: Prices, first: bool) -> str:
    """One line for each rollup and class of use."""
    out = io.StringIO()
    writer = csv.writer(out)
    if first:
        writer.writerow(FOCUS_COLUMNS)
    for row in rows:
        for charge in charges(row, prices.get(row["price_version"])):
            values = _focus(row, charge)
            writer.writerow([_cell(values[name]) for name in FOCUS_COLUMNS])
    return out.getvalue()


def _flat(row: Row) -> dict[str, str | int]:
    """Costs and seconds are decimals in text, so that no reader makes floats of them by accident."""
    return {
        "hour": _moment(row["hour"]),
        **{name: row[name] for name in _DIMENSIONS},
        "price_version": row["price_version"],
        "policy": row["policy"],
        **{name: row[name] for name in _COUNTS},
        "compute_seconds": decimal_text(row["compute_seconds"]),
        "cost": decimal_text(row["cost"]),
    }


def _focus(row: Row, charge: Charge) -> dict[str, object]:
    hour: datetime = row["hour"]
    name = UsageClass.Name(charge.usage_class).removeprefix("USAGE_CLASS_").lower()
    unit = _unit(charge.usage_class)
    price = charge.unit_price
    # What a policy waived stands in the list cost alone. Requests: only those that completed have a price.
    listed = charge.cost if price is None or charge.usage_class == REQUEST else charge.quantity * price
    billed_quantity = charge.cost / price if charge.usage_class == REQUEST and price else charge.quantity
    tags = {"key": row["key"], "model": row["model"], "project": row["project"], "tier": row["tier"]}
    return {
        "BilledCost": decimal_text(charge.cost),
        "BillingAccountId": row["account"],
        "BillingAccountName": row["account_name"] or "",
        "BillingCurrency": row["currency"] or _NO_CURRENCY,
        "BillingPeriodEnd": _moment(next_month(hour.astimezone(UTC))),
        "BillingPeriodStart": _moment(month_start(hour.astimezone(UTC))),
        "ChargeCategory": "Usage",
        "ChargeClass": "",  # "Correction" or nothing; history is never corrected
        "ChargeDescription": f"{row['model']}: {name.replace('_', ' ')}",
        "ChargePeriodEnd": _moment(hour + timedelta(hours=1)),
        "ChargePeriodStart": _moment(hour),
        "ContractedCost": decimal_text(listed),
        "EffectiveCost": decimal_text(charge.cost),
        "InvoiceIssuerName": _PROVIDER,
        "ListCost": decimal_text(listed),
        "PricingQuantity": decimal_text(billed_quantity),
        "PricingUnit": unit,
        "ProviderName": _PROVIDER,
        "PublisherName": _PROVIDER,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Inference",
        "ChargeFrequency": "Usage-Based",
        "ConsumedQuantity": decimal_text(charge.quantity),
        "ConsumedUnit": unit,
        "ContractedUnitPrice": "" if price is None else decimal_text(price),
        "ListUnitPrice": "" if price is None else decimal_text(price),
        "PricingCategory": "" if price is None else "Standard",
        "ResourceId": row["key"],
        "ResourceName": row["key_name"] or "",
        "ResourceType": "API key",
        "ServiceSubcategory": "Generative AI",
        "SkuId": f"{row['model']}/{name}",
        "SkuPriceId": f"{row['price_version']}/{name}" if row["price_version"] else "",
        "SubAccountId": row["project"],
        "SubAccountName": row["project_name"] or "",
        "Tags": json.dumps(tags, ensure_ascii=False),
        "x_Model": row["model"],
        "x_Policy": row["policy"],
        "x_Tier": row["tier"],
        "x_UsageClass": name,
    }


def _unit(usage_class: int) -> str:
    if usage_class == COMPUTE:
        return "Seconds"
    return "Tokens" if usage_class in TOKENS else "Requests"


def _cell(value: object) -> object:
    """Neutral for spreadsheets: text that would be a formula there begins with an apostrophe."""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
