"""
What loss.backward() does, in 30 lines: chapter 3's chain of two parameters, and PyTorch's numbers for it.

    python docs/autograd.py
"""

import math

import torch
import torch.nn.functional as F


class Value:
    """A number that remembers what it was made from (its parents), and how it changes per unit of each."""

    def __init__(self, data, parents=()):
        self.data = data
        self.parents = parents
        self.grad = 0.0

    def __add__(self, other):
        return Value(self.data + other.data, ((self, 1.0), (other, 1.0)))

    def __mul__(self, other):
        return Value(self.data * other.data, ((self, other.data), (other, self.data)))

    def exp(self):
        return Value(math.exp(self.data), ((self, math.exp(self.data)),))

    def log(self):
        return Value(math.log(self.data), ((self, 1 / self.data),))

    def backward(self):
        order = []  # each number after those that it was made from

        def visit(value):
            if value not in order:
                for parent, _ in value.parents:
                    visit(parent)
                order.append(value)

        visit(self)
        self.grad = 1.0
        for value in reversed(order):
            for parent, change in value.parents:
                parent.grad += change * value.grad  # the chain rule; added up where a number was used twice


def report(who, loss, z, w1, w2):
    print(f"{who}: loss {loss:.4f}, gradient of z {z:.4f}, w2 {w2:.4f}, w1 {w1:.4f}")


def main():
    w1 = torch.tensor(0.5, requires_grad=True)
    w2 = torch.tensor(-2.0, requires_grad=True)
    z = w2 * (w1 * 3.0)
    z.retain_grad()  # PyTorch keeps the gradients of parameters only, if it is not asked
    loss = F.cross_entropy(torch.stack((z, torch.tensor(0.0))), torch.tensor(0))  # A and B; A is right
    loss.backward()
    report("PyTorch", loss.item(), z.grad.item(), w1.grad.item(), w2.grad.item())

    w1 = Value(0.5)
    w2 = Value(-2.0)
    z = w2 * (w1 * Value(3.0))
    loss = (z.exp() + Value(1.0)).log() + z * Value(-1.0)  # -ln of e^z / (e^z + e^0)
    loss.backward()
    report("Value", loss.data, z.grad, w1.grad, w2.grad)


if __name__ == "__main__":
    main()
