"""Writes log.csv and items.csv as a shop might have them, into the working folder: a stand-in for your own.

Two hundred customers, sixty products with names for ids; whoever takes one thing often takes what goes with it next.
"""

import csv
import random
from datetime import datetime, timedelta

KINDS = ("tent", "stove", "lamp", "rope", "boots", "map")
COLOURS = ("red", "blue", "green", "grey", "black", "white", "brown", "yellow", "orange", "purple")

draw = random.Random(0)
products = [(f"{kind}-{number:02}", f"{colour} {kind}") for kind in KINDS for number, colour in enumerate(COLOURS)]
start = datetime(2026, 1, 1)

with open("items.csv", "w", newline="") as file:
    csv.writer(file).writerows([("sku", "name"), *products])

rows = []
for customer in range(200):
    product = draw.randrange(len(products))
    for place in range(draw.randint(7, 12)):
        time = start + timedelta(days=7 * place, minutes=draw.randint(0, 9_999))
        rows.append((f"customer {customer}", products[product][0], time.isoformat(sep=" ")))
        # What goes with it: the same colour of the next kind; one time in four, anything.
        goes_with = (product + len(COLOURS)) % len(products)
        product = draw.randrange(len(products)) if draw.random() < 0.25 else goes_with
with open("log.csv", "w", newline="") as file:
    csv.writer(file).writerows([("customer", "sku", "bought_at"), *draw.sample(rows, len(rows))])
